//! Pictures of tables: horizontal bars, as SVG.

use std::fmt::Write;

use crate::table::{Row, Table, number};

const LINE: usize = 18;
const LEFT: usize = 330;
const WIDTH: f64 = 400.0;

/// Draws the last figure of each row up to this column. Each policy has a scale of its own, on which its longest bar
/// has the full width. Policies of one crate alone are left out.
pub fn bars(table: &Table, column: usize, unit: &str) -> String {
    let figure = |row: &Row| row.figures[..=column].iter().rev().copied().find(|figure| !figure.is_nan());
    let (mut lines, mut y) = (String::new(), 0);
    for policy in table.rows.chunk_by(|one, next| one.what == next.what).filter(|policy| policy.len() > 1) {
        y += LINE + 6;
        let _ = writeln!(lines, "<text y=\"{y}\" font-weight=\"bold\">{}</text>", escaped(&policy[0].what));
        let longest = policy.iter().filter_map(figure).fold(f64::MIN_POSITIVE, f64::max);
        for row in policy {
            let Some(figure) = figure(row) else { continue };
            y += LINE;
            // A figure net of the bare service may be below zero by chance.
            let width = (WIDTH * figure / longest).max(1.0);
            let colour = if row.is_ours() { "#1f5fa8" } else { "#b8c4d0" };
            let _ = writeln!(
                lines,
                "<text x=\"{}\" y=\"{y}\" text-anchor=\"end\">{}</text><rect x=\"{LEFT}\" y=\"{}\" width=\"{width:.1}\" \
                 height=\"14\" fill=\"{colour}\"/><text x=\"{:.1}\" y=\"{y}\">{} {unit}</text>",
                LEFT - 8,
                escaped(row.whose),
                y - 12,
                LEFT as f64 + width + 6.0,
                number(figure),
            );
        }
    }
    let height = y + LINE;
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"860\" height=\"{height}\" font-family=\"sans-serif\" \
         font-size=\"13\">\n<rect width=\"860\" height=\"{height}\" fill=\"white\"/>\n<g transform=\"translate(8 \
         0)\">\n{lines}</g>\n</svg>\n"
    )
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}
