//! A table of figures, as text for a terminal and as Markdown.

use std::fmt::Write;

pub struct Table {
    /// The unit of each column, or the situation in which it is measured.
    pub columns: Vec<String>,
    pub rows: Vec<Row>,
}

pub struct Row {
    /// The policy, or the situation.
    pub what: String,
    /// The crate that provides it. Empty for the bare service.
    pub whose: &'static str,
    /// A figure for each column. Those that were not measured are no numbers.
    pub figures: Vec<f64>,
}

impl Row {
    pub fn new(what: impl Into<String>, whose: &'static str, figures: impl Into<Vec<f64>>) -> Self {
        Self { what: what.into(), whose, figures: figures.into() }
    }

    pub fn is_ours(&self) -> bool {
        self.whose == "ziggurat"
    }
}

impl Table {
    pub fn new(columns: impl IntoIterator<Item = impl Into<String>>, rows: Vec<Row>) -> Self {
        Self { columns: columns.into_iter().map(Into::into).collect(), rows }
    }

    /// Adds a column.
    pub fn extend(&mut self, column: &str, figures: impl IntoIterator<Item = f64>) {
        self.columns.push(column.to_owned());
        for (row, figure) in self.rows.iter_mut().zip(figures) {
            row.figures.push(figure);
        }
    }

    pub fn print(&self) {
        let width = |name: &str| name.chars().count().max(9) + 2;
        let longest = self.rows.iter().map(|row| row.what.len()).max().unwrap_or_default() + 2;
        print!("{:<longest$}{:<24}", "", "");
        for column in &self.columns {
            print!("{column:>width$}", width = width(column));
        }
        println!();
        for row in &self.rows {
            print!("{:<longest$}{:<24}", row.what, row.whose);
            for (column, figure) in self.columns.iter().zip(&row.figures) {
                print!("{:>width$}", number(*figure), width = width(column));
            }
            println!();
        }
    }

    pub fn markdown(&self) -> String {
        let mut text =
            format!("| | | {} |\n|---|---|{}\n", self.columns.join(" | "), "---:|".repeat(self.columns.len()));
        for row in &self.rows {
            let what = if row.is_ours() { format!("**{}**", row.whose) } else { row.whose.to_owned() };
            let _ = write!(text, "| {} | {what} |", row.what);
            for figure in &row.figures {
                let _ = write!(text, " {} |", number(*figure));
            }
            text.push('\n');
        }
        text
    }
}

/// Three digits, or all of those before the point.
pub fn number(figure: f64) -> String {
    if figure.is_nan() {
        return "–".to_owned();
    }
    let digits = match figure.abs() {
        0.0..10.0 => 2,
        10.0..100.0 => 1,
        _ => 0,
    };
    // A small negative figure is no negative zero.
    let text = format!("{:.digits$}", if figure.abs() < 0.005 { 0.0 } else { figure });
    let (whole, rest) = text.split_at(text.find('.').unwrap_or(text.len()));
    let (sign, whole) = whole.strip_prefix('-').map_or(("", whole), |whole| ("-", whole));
    format!("{sign}{}{rest}", grouped(whole))
}

/// Digits with a comma before each three of them, counted from the end.
pub fn grouped(digits: &str) -> String {
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}
