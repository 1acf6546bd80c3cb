//! The results: a plot, a table, an SVG, and the promises.

use std::{fs, process::ExitCode, time::Duration};

use plotters::prelude::*;

use super::{BEGIN, BoxError, DEFAULT, END, LENGTH, Outcome, Run, Scene};

/// The plots show a value for each of these.
const STEP: Duration = Duration::from_millis(250);
const STEPS: usize = (LENGTH.as_millis() / STEP.as_millis()) as usize;
const BARS: [char; 9] = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
const SVG: &str = "target/quickstart.svg";

impl Run {
    fn answered(&self) -> impl Iterator<Item = &Outcome> {
        self.requests.iter().filter(|request| request.is_answered)
    }

    fn answers(&self) -> f64 {
        self.answered().count() as f64
    }

    /// Answers per second, in each step.
    fn curve(&self) -> Vec<f64> {
        let mut curve = vec![0.0; STEPS];
        for request in self.answered() {
            let step = (request.sent + request.took).as_millis() / STEP.as_millis();
            curve.get_mut(step as usize).into_iter().for_each(|value| *value += 1.0 / STEP.as_secs_f64());
        }
        curve
    }

    fn calls_a_request(&self) -> f64 {
        self.calls as f64 / self.requests.len() as f64
    }

    /// The smallest part of the requests of a step that was answered, from a second after the brown-out on.
    fn back(&self) -> f64 {
        let step = |request: &Outcome| (request.sent.as_millis() / STEP.as_millis()) as usize;
        let first = ((END + Duration::from_secs(1)).as_millis() / STEP.as_millis()) as usize;
        let part = |nth| {
            let sent = self.requests.iter().filter(|request| step(request) == nth).count();
            self.answered().filter(|request| step(request) == nth).count() as f64 / sent as f64
        };
        (first..STEPS).map(part).fold(1.0, f64::min)
    }

    fn percentile(&self, percent: usize) -> u128 {
        let mut took: Vec<_> = self.answered().map(|request| request.took.as_millis()).collect();
        took.sort();
        took.get(took.len() * percent / 100).copied().unwrap_or_default()
    }
}

pub(crate) fn print(scene: &Scene, runs: &[Run]) -> Result<ExitCode, BoxError> {
    let most = scene.load * 1.5;
    let slow = (0..STEPS).map(|step| if (BEGIN..END).contains(&(STEP * step as u32)) { 's' } else { ' ' });
    println!("answers per second, a column for each {} ms:\n{:8}{}", STEP.as_millis(), "", slow.collect::<String>());
    for run in runs {
        let bars = run.curve().into_iter().map(|value| BARS[((value / most * 8.0).ceil() as usize).min(8)]);
        println!("{:8}{}", run.name, bars.collect::<String>());
    }
    println!("\n          requests   answers    p50 ms    p99 ms   calls a request");
    for run in runs {
        let (p50, p99, calls) = (run.percentile(50), run.percentile(99), run.calls_a_request());
        println!("{:8}{:>10}{:>10}{p50:>10}{p99:>10}{calls:>18.2}", run.name, run.requests.len(), run.answers());
    }
    draw(runs, most)?;
    println!("\nthe curves are in {SVG}\n");

    // The promises are about the default scene, with any seed.
    if (Scene { seed: DEFAULT.seed, ..*scene }) != DEFAULT {
        return Ok(ExitCode::SUCCESS);
    }
    let slip = runs.iter().map(|run| run.slip).max().unwrap_or_default();
    if slip > STEP / 10 {
        println!("void: the load generator was {} ms late, because this machine is too busy", slip.as_millis());
        return Ok(ExitCode::from(75));
    }
    let [bare, naive, stack] = runs else { return Err("three clients run".into()) };
    let promises = [
        (stack.back() >= 0.95, "a second after the brown-out the stack is back, and stays"),
        (stack.answers() >= 0.98 * bare.answers(), "it answers as many requests as the bare client, or more"),
        (naive.answers() <= stack.answers() * 2.0 / 3.0, "naive retries cost a third of the answers"),
        (stack.calls_a_request() <= 1.25, "it makes at most 1.25 calls for each request"),
    ];
    promises.iter().for_each(|(kept, what)| println!("{}  {what}", if *kept { "kept  " } else { "BROKEN" }));
    Ok(if promises.iter().all(|(kept, _)| *kept) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn draw(runs: &[Run], most: f64) -> Result<(), BoxError> {
    fs::create_dir_all("target")?;
    let area = SVGBackend::new(SVG, (720, 300)).into_drawing_area();
    area.fill(&WHITE)?;
    let seconds = 0.0..LENGTH.as_secs_f64();
    let mut chart = ChartBuilder::on(&area)
        .margin(10)
        .x_label_area_size(30)
        .y_label_area_size(40)
        .build_cartesian_2d(seconds, 0.0..most * 1.2)?;
    chart.configure_mesh().disable_mesh().x_desc("seconds").y_desc("answers per second").draw()?;
    let slow = [(BEGIN.as_secs_f64(), 0.0), (END.as_secs_f64(), most * 1.2)];
    chart.draw_series([Rectangle::new(slow, BLACK.mix(0.06).filled())])?;
    for (run, color) in runs.iter().zip([BLUE, RED, RGBColor(0, 128, 0)]) {
        let middle = |step| STEP.as_secs_f64() * (step as f64 + 0.5);
        let points = run.curve().into_iter().enumerate().map(|(step, value)| (middle(step), value));
        let line = chart.draw_series(LineSeries::new(points, ShapeStyle::from(color).stroke_width(2)))?;
        line.label(run.name).legend(move |(x, y)| PathElement::new([(x, y), (x + 20, y)], color));
    }
    chart.configure_series_labels().background_style(WHITE).border_style(BLACK).draw()?;
    area.present()?;
    Ok(())
}
