//! Floor 0: reports as self-contained pages, with plots in SVG.
//!
//! | file | what it holds |
//! |---|---|
//! | `plot` | axes, lines, dots and areas |

mod plot;

pub use plot::{Axis, COLOURS, Plot};

/// Style sheet for light and dark mode, and the font of plots.
const INK: &str = "
:root { --ink: #1c2430; --soft: #5d6b7e; --line: #d8dee6; --page: #ffffff; --a: #0b62c4; --b: #c2410c; --c: #0f7b53; --d: #7c3aed; --e: #a16207; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6ebf2; --soft: #9aa7b8; --line: #313b48; --page: #12171e; --a: #6cb0ff; --b: #ff9d66; --c: #5fd3a3; --d: #b79bff; --e: #e0b84d; }
}
svg text { fill: var(--ink); font-size: 12px } svg .soft { fill: var(--soft) } svg .grid { stroke: var(--line) }
";

const STYLE: &str = "
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--page); max-width: 76rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin: 0 0 .3rem } h2 { font-size: 1.1rem; margin: 2rem 0 .5rem }
.lead { font-size: 1.1rem; border-left: 4px solid var(--a); padding-left: .8rem }
.wrong { border-color: var(--b); color: var(--b) }
.plots { display: flex; flex-wrap: wrap; gap: 1.5rem } svg { flex: 1 1 30rem; max-width: 38rem; height: auto }
.wide { overflow-x: auto } table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { padding: .25rem .6rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap }
th { color: var(--soft); font-weight: 600 } th:first-child, td:first-child { text-align: left }
tr.best td { font-weight: 700 } p.note { color: var(--soft) }
";

/// A page with a title, which is also its heading, and a body in HTML.
pub fn page(title: &str, body: &str) -> String {
    let title = escape(title);
    format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width\"><title>{title}</title>\
         <style>{INK}{STYLE}</style></head><body>\n<h1>{title}</h1>\n{body}</body></html>\n"
    )
}

/// A plot as an SVG file, for a README.
pub fn picture(plot: &str) -> String {
    let head = "<svg xmlns=\"http://www.w3.org/2000/svg\" font-family=\"system-ui, sans-serif\" ";
    let plot = plot.replacen("<svg ", head, 1);
    let ground = "<rect width=\"100%\" height=\"100%\" fill=\"var(--page)\"/>";
    plot.replacen('>', &format!("><style>{INK}</style>{ground}"), 1)
}

/// Escapes text for HTML and its attributes.
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_stands_alone() {
        let picture = picture("<svg viewBox=\"0 0 1 1\"><text>a > b</text></svg>\n");
        assert!(picture.starts_with("<svg xmlns="), "{picture}");
        assert!(picture.contains("0 0 1 1\"><style>") && picture.ends_with("<text>a > b</text></svg>\n"));
    }

    #[test]
    fn names_cannot_break_the_page() {
        assert_eq!(escape("<script>&\""), "&lt;script&gt;&amp;&quot;");
    }
}
