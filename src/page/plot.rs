//! A plot in SVG: axes with round ticks, and lines, dots and areas.

use super::escape;
use std::fmt::Write;

/// The size of a drawing and the edges of its plot.
const WIDTH: f64 = 600.0;
const HEIGHT: f64 = 400.0;
const LEFT: f64 = 55.0;
const RIGHT: f64 = 580.0;
const TOP: f64 = 40.0;
const BOTTOM: f64 = 345.0;

/// Colours of series, defined by the page's style sheet.
pub const COLOURS: [&str; 5] = ["var(--a)", "var(--b)", "var(--c)", "var(--d)", "var(--e)"];

/// An axis.
#[derive(Clone, Debug)]
pub struct Axis {
    label: String,
    /// Its ends; for a logarithmic axis their powers of ten.
    low: f64,
    high: f64,
    log: bool,
    ticks: Vec<(f64, String)>,
}

impl Axis {
    /// From the least to the greatest value, with a margin.
    pub fn linear(label: &str, values: impl Iterator<Item = f64>) -> Self {
        let (low, high) = range(values);
        Self::between(label, low, high)
    }

    /// From 0 to a given end.
    pub fn until(label: &str, end: f64) -> Self {
        Self::between(label, 0.0, end)
    }

    /// From 0 to slightly more than the greatest value.
    pub fn from_zero(label: &str, values: impl Iterator<Item = f64>) -> Self {
        let high = values.fold(0.0, f64::max);
        Self::between(label, 0.0, if high > 0.0 { 1.05 * high } else { 1.0 })
    }

    /// Logarithmic; values are more than 0.
    pub fn log(label: &str, values: impl Iterator<Item = f64>) -> Self {
        let (low, high) = range(values.map(f64::log10));
        let ticks = decades(low, high).map(|tick| (tick, tick.to_string())).collect();
        Self { label: label.to_owned(), low, high, log: true, ticks }
    }

    /// Percentiles from the median on; each tenth of the remaining share is as wide as the last. A value is 1 /
    /// (remaining share): 2 for the median, 100 for a p99.
    pub fn percentiles(label: &str, greatest: f64) -> Self {
        let named: [(f64, &str); 6] =
            [(2.0, "p50"), (10.0, "p90"), (100.0, "p99"), (1e3, "p99.9"), (1e4, "p99.99"), (1e5, "p99.999")];
        let high = greatest.max(10.0).log10();
        let ticks = named.iter().filter(|(value, _)| value.log10() <= high + 1e-9);
        let ticks = ticks.map(|&(value, name)| (value, name.to_owned())).collect();
        Self { label: label.to_owned(), low: 2f64.log10(), high, log: true, ticks }
    }

    fn between(label: &str, low: f64, high: f64) -> Self {
        Self { label: label.to_owned(), low, high, log: false, ticks: ticks(low, high) }
    }

    /// The position of a value, 0 to 1.
    fn share(&self, value: f64) -> f64 {
        let value = if self.log { value.log10() } else { value };
        (value - self.low) / (self.high - self.low)
    }
}

/// The least and the greatest value, with a margin on both sides.
fn range(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let (low, high) = values
        .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| (low.min(value), high.max(value)));
    if low > high {
        return (0.0, 1.0);
    }
    let margin = 0.08 * (high - low).max(0.01);
    (low - margin, high + margin)
}

/// About six round values, with the digits that their distance needs.
fn ticks(low: f64, high: f64) -> Vec<(f64, String)> {
    let power = 10f64.powf(((high - low) / 7.0).log10().floor());
    let fits = |step: &f64| (high - low) / step <= 7.0;
    let step =
        [1.0, 2.0, 5.0, 10.0].map(|factor| factor * power).into_iter().find(fits).unwrap_or(10.0 * power);
    let digits = (-step.log10().floor()).max(0.0) as usize;
    let places = (low / step).ceil() as i64..=(high / step).floor() as i64;
    places.map(|place| place as f64 * step).map(|tick| (tick, format!("{tick:.digits$}"))).collect()
}

/// 1, 2 and 5 times powers of ten, within the given powers.
fn decades(low: f64, high: f64) -> impl Iterator<Item = f64> {
    let powers = low.floor() as i32..=high.ceil() as i32;
    let all = powers.flat_map(|power| {
        [1.0, 2.0, 5.0].map(|factor: f64| format!("{factor}e{power}").parse().unwrap_or(factor))
    });
    let wide = high - low > 2.0;
    all.filter(move |value: &f64| {
        (low..=high).contains(&value.log10()) && (!wide || (value.log10() % 1.0).abs() < 1e-9)
    })
}

/// A plot in progress.
pub struct Plot {
    svg: String,
    x: Axis,
    y: Axis,
    legend: f64,
}

impl Plot {
    /// Draws title, axes and grid.
    pub fn new(title: &str, x: Axis, y: Axis) -> Self {
        let svg = format!(
            "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{title}\">\
             <text x=\"{LEFT}\" y=\"20\" style=\"font-size:15px;font-weight:600\">{title}</text>\n",
            title = escape(title)
        );
        let mut plot = Self { svg, x, y, legend: RIGHT };
        for (tick, text) in plot.y.ticks.clone() {
            let y = plot.up(tick);
            plot.put(&format!(
                "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{RIGHT}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>"
            ));
            plot.soft(LEFT - 6.0, y + 4.0, "end", &text);
        }
        for (tick, text) in plot.x.ticks.clone() {
            let x = plot.across(tick);
            plot.put(&format!(
                "<line class=\"grid\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{TOP}\" y2=\"{BOTTOM}\"/>"
            ));
            plot.soft(x, BOTTOM + 18.0, "middle", &text);
        }
        let middle = (LEFT + RIGHT) / 2.0;
        let label = escape(&plot.x.label);
        plot.put(&format!(
            "<text x=\"{middle}\" y=\"{:.1}\" text-anchor=\"middle\">{label}</text>",
            BOTTOM + 40.0
        ));
        let label = plot.y.label.clone();
        plot.soft(LEFT, TOP - 6.0, "start", &label);
        plot
    }

    /// The x coordinate of a value.
    pub fn across(&self, x: f64) -> f64 {
        LEFT + self.x.share(x) * (RIGHT - LEFT)
    }

    /// The y coordinate of a value.
    pub fn up(&self, y: f64) -> f64 {
        BOTTOM - self.y.share(y) * (BOTTOM - TOP)
    }

    /// Appends to the drawing.
    pub fn put(&mut self, part: &str) {
        writeln!(self.svg, "{part}").expect("a string takes all that is written");
    }

    /// Draws faint text; `anchor` is SVG's `text-anchor`.
    pub fn soft(&mut self, x: f64, y: f64, anchor: &str, text: &str) {
        let text = escape(text);
        self.put(&format!(
            "<text class=\"soft\" x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{text}</text>"
        ));
    }

    /// Draws a line through points.
    pub fn line(&mut self, points: &[(f64, f64)], colour: &str) {
        let points: Vec<String> =
            points.iter().map(|&(x, y)| format!("{:.1},{:.1}", self.across(x), self.up(y))).collect();
        self.put(&format!(
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.5\" opacity=\".8\"/>",
            points.join(" ")
        ));
    }

    /// Draws a dot with a tooltip.
    pub fn dot(&mut self, (x, y): (f64, f64), colour: &str, title: &str) {
        let (cx, cy, title) = (self.across(x), self.up(y), escape(title));
        self.put(&format!(
            "<circle cx=\"{cx:.1}\" cy=\"{cy:.1}\" r=\"4.5\" fill=\"{colour}\"><title>{title}</title></circle>"
        ));
    }

    /// Draws a bar between two values of each axis.
    pub fn bar(&mut self, (left, right): (f64, f64), (low, high): (f64, f64), colour: &str) {
        let (left, right, top) = (self.across(left), self.across(right), self.up(high));
        self.put(&format!(
            "<rect x=\"{left:.1}\" y=\"{top:.1}\" width=\"{:.1}\" height=\"{:.1}\" fill=\"{colour}\"/>",
            right - left,
            self.up(low) - top
        ));
    }

    /// Draws a dashed horizontal line with its name.
    pub fn level(&mut self, y: f64, name: &str) {
        let y = self.up(y);
        self.put(&format!(
            "<line x1=\"{LEFT}\" x2=\"{RIGHT}\" y1=\"{y:.1}\" y2=\"{y:.1}\" stroke=\"var(--soft)\" stroke-dasharray=\"5 4\"/>"
        ));
        self.soft(RIGHT - 4.0, y - 5.0, "end", name);
    }

    /// Adds a colour to the legend, from right to left.
    pub fn name(&mut self, colour: &str, name: &str) {
        let y = TOP - 6.0;
        // Slightly less than a letter's width, so that a name stands closer to its own dot than to the next.
        let start = self.legend - 6.2 * name.chars().count() as f64;
        self.soft(start, y, "start", name);
        let dot = start - 9.0;
        self.put(&format!("<circle cx=\"{dot:.1}\" cy=\"{:.1}\" r=\"4.5\" fill=\"{colour}\"/>", y - 4.0));
        self.legend = dot - 16.0;
    }

    /// Places names beside their dots so that they cover neither dots nor each other, if there is room.
    pub fn names(&mut self, dots: &[(f64, f64, String)]) {
        let dots: Vec<(f64, f64, &String)> =
            dots.iter().map(|(x, y, name)| (self.across(*x), self.up(*y), name)).collect();
        let mut taken: Vec<[f64; 4]> =
            dots.iter().map(|&(x, y, _)| [x - 5.0, y - 5.0, x + 5.0, y + 5.0]).collect();
        for (cx, cy, name) in dots {
            let wide = 6.6 * name.len() as f64;
            let boxed = |(x, y): (f64, f64)| [x, y - 10.0, x + wide, y + 3.0];
            let places = [
                (cx + 9.0, cy + 4.0),
                (cx - 9.0 - wide, cy + 4.0),
                (cx - wide / 2.0, cy + 19.0),
                (cx - wide / 2.0, cy - 10.0),
                (cx + 9.0, cy + 19.0),
                (cx - 9.0 - wide, cy - 10.0),
            ];
            let free = |place: &&(f64, f64)| {
                let [left, top, right, bottom] = boxed(**place);
                let apart = |other: &[f64; 4]| {
                    right < other[0] || left > other[2] || bottom < other[1] || top > other[3]
                };
                left > LEFT && right < WIDTH && taken.iter().all(apart)
            };
            let (x, y) = *places.iter().find(free).unwrap_or(&places[0]);
            taken.push(boxed((x, y)));
            self.put(&format!("<text x=\"{x:.1}\" y=\"{y:.1}\">{}</text>", escape(name)));
        }
    }

    /// The finished drawing.
    pub fn finish(mut self) -> String {
        self.svg.push_str("</svg>\n");
        self.svg
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_within() {
        assert_eq!(decades(0.5, 1.5).collect::<Vec<_>>(), [5.0, 10.0, 20.0]);
        assert_eq!(decades(-2.0, 2.5).collect::<Vec<_>>(), [0.01, 0.1, 1.0, 10.0, 100.0]);
        let texts = |low, high| ticks(low, high).into_iter().map(|(_, text)| text).collect::<Vec<_>>();
        assert_eq!(texts(0.396, 0.443), ["0.40", "0.41", "0.42", "0.43", "0.44"]);
        assert_eq!(texts(0.0, 1_234.0), ["0", "200", "400", "600", "800", "1000", "1200"]);
    }

    #[test]
    fn an_axis_goes_from_end_to_end() {
        let axis = Axis::percentiles("", 1_000.0);
        assert_eq!(axis.ticks.len(), 4);
        assert!((axis.share(2.0)).abs() < 1e-9 && (axis.share(1_000.0) - 1.0).abs() < 1e-9);
        let axis = Axis::from_zero("", [3.0, 10.0].into_iter());
        assert!((axis.share(10.5) - 1.0).abs() < 1e-9 && axis.share(0.0) == 0.0);
    }
}
