//! The result as a picture: one horizontal bar per metric, its length the ratio to the kernel's. Pure.
//!
//! ```text
//!   More is better             0        kernel
//!   TCP, 1 stream              ████████─┼┃  |          0.71   7.40 of 10.40 Gbit/s
//!                                  range ─  ┃ target
//! ```

use std::fmt::Write;

use super::metric::{Metric, Summary, Target};

const WIDTH: f64 = 900.0;
const MARGIN: f64 = 16.0;
const ROW: f64 = 24.0;
const BAR: f64 = 12.0;
/// Where the bars begin and end.
const LEFT: f64 = 300.0;
const RIGHT: f64 = 640.0;
/// Where the figures end.
const RATIO: f64 = 690.0;
/// Ratios beyond this are drawn as a bar with an arrow.
const LONGEST: f64 = 3.0;

/// Colours for a light page, and for a dark one where the viewer says that it is dark.
const STYLE: &str = "<style>
svg { font: 13px system-ui, sans-serif; }
.title { font-size: 16px; font-weight: 600; } .group { font-weight: 600; }
.range { stroke-width: 1.5; } .kernel { stroke-dasharray: 4 3; } .mark { stroke-width: 3; }
.page { fill: #ffffff; } text { fill: #1f2328; } .faint { fill: #59636e; }
.bar { fill: #6d9bd8; } .range { stroke: #1f2328; } .kernel { stroke: #59636e; } .mark { stroke: #c2410c; }
@media (prefers-color-scheme: dark) {
.page { fill: #0d1117; } text { fill: #e6edf3; } .faint { fill: #9198a1; }
.bar { fill: #3f6fb0; } .range { stroke: #e6edf3; } .kernel { stroke: #9198a1; } .mark { stroke: #fb923c; }
}
</style>
";

/// One metric in the picture.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Bar {
    title: String,
    figures: String,
    ratio: f64,
    lowest: f64,
    highest: f64,
    target: Option<f64>,
}

impl Bar {
    /// `None` for a metric that has no ratio, or repeats another's.
    pub(super) fn new(metric: &Metric, summary: &Summary) -> Option<Self> {
        let ratio = summary.ratio.filter(|_| metric.unit != "x")?;
        let target = metric.target.map(|target| match target {
            Target::RatioAtLeast(ratio) | Target::RatioAtMost(ratio) => ratio,
            Target::AtLeast(value) | Target::Below(value) => value / summary.kernel,
        });
        Some(Self {
            title: metric.title.to_owned(),
            figures: format!("{:.3$} of {:.3$} {}", summary.rust, summary.kernel, metric.unit, metric.digits),
            ratio,
            lowest: summary.lowest.unwrap_or(ratio),
            highest: summary.highest.unwrap_or(ratio),
            target: target.filter(|t| t.is_finite()),
        })
    }

    fn extent(&self) -> f64 {
        self.highest.max(self.ratio).max(self.target.unwrap_or_default())
    }
}

/// The picture, with the bars in groups under a heading each.
pub(super) fn svg(title: &str, subtitle: &str, groups: &[(&str, Vec<Bar>)]) -> String {
    let longest = groups.iter().flat_map(|(_, bars)| bars).map(Bar::extent).fold(1.25, f64::max);
    let scale = Scale { end: longest.min(LONGEST) };
    let mut body = String::new();
    let mut y = MARGIN + 16.0;
    text(&mut body, "title", MARGIN, y, title);
    y += ROW;
    text(&mut body, "faint", MARGIN, y, subtitle);
    y += 1.25 * ROW;
    legend(&mut body, y);
    for (heading, bars) in groups.iter().filter(|(_, bars)| !bars.is_empty()) {
        y += 1.5 * ROW;
        text(&mut body, "group", MARGIN, y, heading);
        let top = y - BAR;
        for bar in bars {
            y += ROW;
            row(&mut body, &scale, bar, y);
        }
        let one = scale.x(1.0);
        let bottom = y + 8.0;
        let _ = writeln!(
            body,
            r#"<line class="kernel" x1="{one:.1}" x2="{one:.1}" y1="{top:.1}" y2="{bottom:.1}"/>"#
        );
        text(&mut body, "faint", one + 4.0, top + 10.0, "kernel = 1");
    }
    let height = y + ROW;
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height:.0}\" width=\"{WIDTH}\" \
         height=\"{height:.0}\" role=\"img\">\n<title>{}</title>\n{STYLE}\
         <rect class=\"page\" width=\"100%\" height=\"100%\"/>\n{body}</svg>\n",
        escaped(title)
    )
}

/// From ratios to places.
struct Scale {
    end: f64,
}

impl Scale {
    fn x(&self, ratio: f64) -> f64 {
        LEFT + (RIGHT - LEFT) * ratio.clamp(0.0, self.end) / self.end
    }
}

fn legend(body: &mut String, y: f64) {
    let middle = y - 4.0;
    let (mark, range) = (LEFT, LEFT + 90.0);
    let _ = writeln!(
        body,
        r#"<line class="mark" x1="{mark}" x2="{mark}" y1="{:.1}" y2="{:.1}"/>"#,
        middle - 8.0,
        middle + 8.0
    );
    text(body, "faint", mark + 8.0, y, "target");
    let _ = writeln!(
        body,
        r#"<line class="range" x1="{range}" x2="{:.1}" y1="{middle:.1}" y2="{middle:.1}"/>"#,
        range + 20.0
    );
    text(body, "faint", range + 28.0, y, "range of the rounds");
}

/// One bar with its range, its target and its figures; `y` is the text's base line.
fn row(body: &mut String, scale: &Scale, bar: &Bar, y: f64) {
    let middle = y - 4.0;
    text(body, "", MARGIN, y, bar.title.trim());
    let width = scale.x(bar.ratio) - LEFT;
    let _ = writeln!(
        body,
        r#"<rect class="bar" x="{LEFT}" y="{:.1}" width="{width:.1}" height="{BAR}"/>"#,
        middle - BAR / 2.0
    );
    let (low, high) = (scale.x(bar.lowest), scale.x(bar.highest));
    let _ = writeln!(
        body,
        r#"<line class="range" x1="{low:.1}" x2="{high:.1}" y1="{middle:.1}" y2="{middle:.1}"/>"#
    );
    if let Some(target) = bar.target {
        let x = scale.x(target);
        let (top, bottom) = (middle - 9.0, middle + 9.0);
        let _ =
            writeln!(body, r#"<line class="mark" x1="{x:.1}" x2="{x:.1}" y1="{top:.1}" y2="{bottom:.1}"/>"#);
    }
    if bar.ratio > scale.end {
        text(body, "", RIGHT - 4.0, y, "\u{2192}");
    }
    let _ = writeln!(body, r#"<text x="{RATIO}" y="{y:.1}" text-anchor="end">{:.2}</text>"#, bar.ratio);
    text(body, "faint", RATIO + 14.0, y, &bar.figures);
}

fn text(body: &mut String, class: &str, x: f64, y: f64, words: &str) {
    let _ = writeln!(body, r#"<text class="{class}" x="{x:.1}" y="{y:.1}">{}</text>"#, escaped(words));
}

fn escaped(words: &str) -> String {
    words.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::super::metric::METRICS;
    use super::*;

    fn bar(ratio: f64, target: Option<f64>) -> Bar {
        let (lowest, highest) = (ratio * 0.9, ratio * 1.1);
        Bar { title: "a < b".into(), figures: "1 of 2 x".into(), ratio, lowest, highest, target }
    }

    /// The value of an attribute in the first line that holds `class`.
    fn attribute(svg: &str, class: &str, name: &str) -> f64 {
        let line = svg.lines().find(|l| l.contains(&format!("class=\"{class}\" x"))).unwrap();
        let rest = line.split_once(&format!(" {name}=\"")).unwrap().1;
        rest.split_once('"').unwrap().0.parse().unwrap()
    }

    #[test]
    fn bars_marks_and_the_kernels_line_stand_on_one_scale() {
        let drawn = svg("t", "s", &[("More", vec![bar(0.5, Some(1.5))])]);
        let drawn = drawn.split_once("range of the rounds").unwrap().1;
        // The scale ends at the largest thing on it, the target.
        let per_unit = (RIGHT - LEFT) / 1.5;
        assert!((attribute(drawn, "bar", "width") - 0.5 * per_unit).abs() < 0.1, "{drawn}");
        assert!((attribute(drawn, "kernel", "x1") - (LEFT + per_unit)).abs() < 0.1, "{drawn}");
        assert!((attribute(drawn, "mark", "x1") - RIGHT).abs() < 0.1, "{drawn}");
        assert!((attribute(drawn, "range", "x2") - (LEFT + 0.55 * per_unit)).abs() < 0.1, "{drawn}");
    }

    #[test]
    fn what_is_off_the_scale_stays_in_the_picture_and_says_so() {
        let drawn = svg("t", "s", &[("Less", vec![bar(40.0, None)])]);
        assert!((attribute(&drawn, "bar", "width") - (RIGHT - LEFT)).abs() < 0.1, "{drawn}");
        assert!(drawn.contains('\u{2192}') && drawn.contains(">40.00</text>"), "{drawn}");
    }

    #[test]
    fn text_is_escaped_and_empty_groups_are_left_out() {
        let drawn = svg("R&D", "s", &[("More", vec![bar(1.0, None)]), ("Less", Vec::new())]);
        assert!(drawn.contains("<title>R&amp;D</title>") && drawn.contains("a &lt; b"), "{drawn}");
        assert!(!drawn.contains("Less"), "{drawn}");
    }

    #[test]
    fn an_absolute_target_is_marked_where_it_lies_beside_the_kernels_figure() {
        let memory = METRICS.iter().find(|m| m.key == "memory_peak").unwrap();
        let summary = Summary {
            metric: memory.key,
            kernel: 10.0,
            rust: 12.0,
            ratio: Some(1.2),
            lowest: None,
            highest: None,
            met: Some(true),
        };
        let bar = Bar::new(memory, &summary).unwrap();
        assert_eq!((bar.target, bar.figures.as_str()), (Some(1.5), "12.0 of 10.0 MB"));
        assert_eq!(Bar::new(memory, &Summary { ratio: None, ..summary }), None);
    }
}
