//! W3C trace context: a request continues its caller's trace with a span of its own. Source:
//! <https://www.w3.org/TR/trace-context/>, version 00.

use std::fmt;

/// A request's place in a trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceContext {
    /// The trace id, shared by every service that handles the request.
    pub trace: u128,
    /// The id of this request's span.
    pub span: u64,
    /// The caller's span; none if the trace begins here.
    pub parent: Option<u64>,
    /// Whether the caller records the trace.
    pub sampled: bool,
}

impl TraceContext {
    /// Continues a valid `traceparent`, or begins a trace. `random` gives new ids: trace, then span. The share `sample`
    /// of traces that begin here is recorded, chosen by trace id as in OpenTelemetry's TraceIdRatioBased.
    pub fn continued(traceparent: Option<&str>, random: (u128, u64), sample: f64) -> Self {
        // An id of zero is invalid.
        let (trace, span) = (random.0.max(1), random.1.max(1));
        match traceparent.and_then(parse) {
            Some((trace, parent, sampled)) => Self { trace, span, parent: Some(parent), sampled },
            None => {
                const BITS: u32 = 56;
                let sampled = ((trace as u64 & ((1 << BITS) - 1)) as f64) < sample * (1_u64 << BITS) as f64;
                Self { trace, span, parent: None, sampled }
            }
        }
    }
}

/// The `traceparent` header for the next service.
impl fmt::Display for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{:032x}-{:016x}-{:02x}", self.trace, self.span, u8::from(self.sampled))
    }
}

/// `version-trace-parent-flags`. Later versions may have more fields, which are ignored.
fn parse(header: &str) -> Option<(u128, u64, bool)> {
    let mut fields = header.split('-');
    let mut hex = |digits: usize| {
        let field = fields.next()?;
        let plain = |c: u8| c.is_ascii_digit() || (b'a'..=b'f').contains(&c);
        (field.len() == digits && field.bytes().all(plain)).then_some(field)
    };
    let version = u8::from_str_radix(hex(2)?, 16).ok()?;
    let trace = u128::from_str_radix(hex(32)?, 16).ok()?;
    let parent = u64::from_str_radix(hex(16)?, 16).ok()?;
    let flags = u8::from_str_radix(hex(2)?, 16).ok()?;
    let ends = fields.next().is_none();
    let is_valid = version != 0xff && trace != 0 && parent != 0 && (ends || version > 0);
    is_valid.then_some((trace, parent, flags & 1 == 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FRESH: (u128, u64) = (7, 9);

    #[test]
    fn a_trace_is_continued_with_a_span_of_our_own() {
        let header = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let context = TraceContext::continued(Some(header), FRESH, 0.0);
        assert_eq!((context.parent, context.sampled), (Some(0x00f0_67aa_0ba9_02b7), true));
        assert_eq!(context.to_string(), "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000009-01");
    }

    #[test]
    fn what_is_not_a_trace_begins_one() {
        let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
        let rows = [
            String::new(),
            "00".to_owned(),
            format!("ff-{trace}-00f067aa0ba902b7-01"),
            format!("00-{}-00f067aa0ba902b7-01", "0".repeat(32)),
            format!("00-{trace}-0000000000000000-01"),
            format!("00-{}-00f067aa0ba902b7-01", trace.to_uppercase()),
            format!("00-{trace}-00f067aa0ba902b7-01-more"),
            format!("00-+{}-00f067aa0ba902b7-01", &trace[1..]),
        ];
        for header in rows {
            let context = TraceContext::continued(Some(&header), FRESH, 0.0);
            assert_eq!((context.trace, context.parent), (7, None), "{header}");
        }
    }

    #[test]
    fn a_later_version_may_say_more() {
        let header = "01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00-more";
        assert!(TraceContext::continued(Some(header), FRESH, 0.0).parent.is_some());
    }

    #[test]
    fn a_share_of_the_traces_begun_here_is_sampled() {
        let sampled = |sample: f64| {
            let spread = |trace: u128| trace.wrapping_mul(0x9E37_79B9_7F4A_7C15);
            (1..=1000)
                .filter(|&trace| TraceContext::continued(None, (spread(trace), 1), sample).sampled)
                .count()
        };
        assert_eq!((sampled(0.0), sampled(1.0)), (0, 1000));
        assert!((200..300).contains(&sampled(0.25)), "{}", sampled(0.25));
    }
}
