//! Truncation on the wire: our own dialect's fields, and headers with the same meaning in every dialect.

use super::ApiError;
use super::fields::{Field, Fields, at_least_one, header, must_be, one_of};
use crate::base::Side;
use crate::rerank::{Overflow, PairTokens, Truncation};
use http::HeaderMap;

/// The policies by their names.
pub(super) const POLICIES: &[(&str, Overflow)] = &{
    let all = Overflow::ALL;
    [(all[0].name(), all[0]), (all[1].name(), all[1]), (all[2].name(), all[2]), (all[3].name(), all[3])]
};

/// The sides by their names.
pub(super) const SIDES: &[(&str, Side)] =
    &[(Side::Left.name(), Side::Left), (Side::Right.name(), Side::Right)];

/// Takes our own fields.
pub(super) fn fields(fields: &mut Fields) -> Result<Truncation, ApiError> {
    Ok(Truncation {
        policy: fields.word("truncation", POLICIES)?,
        side: fields.word("truncation_side", SIDES)?,
        pair_tokens: pair_tokens(fields, "pair_tokens_max", PairTokens::AtMost)?.unwrap_or_default(),
        query_tokens_max: fields.count("query_tokens_max", 1)?,
        document_tokens_max: fields.count("document_tokens_max", 1)?,
    })
}

/// Takes the limit of a pair; -1 is the model's limit.
pub(super) fn pair_tokens(
    fields: &mut Fields,
    name: &str,
    limit: fn(u32) -> PairTokens,
) -> Result<Option<PairTokens>, ApiError> {
    match fields.take(name) {
        None => Ok(None),
        Some(Field::Number(value)) => number(name, value, &value, limit).map(Some),
        Some(other) => Err(must_be(name, "a whole number", &other)),
    }
}

/// Reads the headers, which take precedence over the body's fields.
pub(super) fn headers(headers: &HeaderMap, truncation: &mut Truncation) -> Result<(), ApiError> {
    if let Some((name, text)) = header(headers, "x-podium-truncation")? {
        truncation.policy = Some(one_of(name, text, POLICIES)?);
    }
    if let Some((name, text)) = header(headers, "x-podium-truncation-side")? {
        truncation.side = Some(one_of(name, text, SIDES)?);
    }
    if let Some((name, text)) = header(headers, "x-podium-pair-tokens-max")? {
        let value = text.parse().unwrap_or(f64::NAN);
        truncation.pair_tokens = number(name, value, &text, PairTokens::AtMost)?;
    }
    if let Some((name, text)) = header(headers, "x-podium-query-tokens-max")? {
        truncation.query_tokens_max = Some(at_least_one(name, text)?);
    }
    if let Some((name, text)) = header(headers, "x-podium-document-tokens-max")? {
        truncation.document_tokens_max = Some(at_least_one(name, text)?);
    }
    Ok(())
}

fn number(
    name: &str,
    value: f64,
    text: &dyn std::fmt::Display,
    limit: fn(u32) -> PairTokens,
) -> Result<PairTokens, ApiError> {
    match value {
        -1.0 => Ok(PairTokens::Model),
        value if value.fract() == 0.0 && value >= 1.0 => Ok(limit(value as u32)),
        _ => Err(ApiError::invalid(
            name,
            format!("`{text}` is neither a whole number of at least 1 nor -1, what the model reads"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers_of(rows: &[(&'static str, &str)]) -> HeaderMap {
        rows.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
    }

    #[test]
    fn fields_and_headers_say_the_same_and_headers_win() {
        let body = br#"{"truncation": "refuse", "truncation_side": "left", "pair_tokens_max": 100,
            "query_tokens_max": 20, "document_tokens_max": 50}"#;
        let mut found = fields(&mut Fields::parse(body).unwrap()).unwrap();
        let expected = Truncation {
            policy: Some(Overflow::Refuse),
            side: Some(Side::Left),
            pair_tokens: PairTokens::AtMost(100),
            query_tokens_max: Some(20),
            document_tokens_max: Some(50),
        };
        assert_eq!(found, expected);
        headers(&HeaderMap::new(), &mut found).unwrap();
        assert_eq!(found, expected);
        let rows = [
            ("x-podium-truncation", "longest_first"),
            ("x-podium-truncation-side", "right"),
            ("x-podium-pair-tokens-max", "-1"),
            ("x-podium-query-tokens-max", "7"),
            ("x-podium-document-tokens-max", "8"),
        ];
        headers(&headers_of(&rows), &mut found).unwrap();
        let expected = Truncation {
            policy: Some(Overflow::LongestFirst),
            side: Some(Side::Right),
            pair_tokens: PairTokens::Model,
            query_tokens_max: Some(7),
            document_tokens_max: Some(8),
        };
        assert_eq!(found, expected);
        let huge = "9".repeat(40);
        let rows = [
            ("x-podium-pair-tokens-max", &*huge),
            ("x-podium-query-tokens-max", &huge),
            ("x-podium-document-tokens-max", &huge),
        ];
        headers(&headers_of(&rows), &mut found).unwrap();
        assert_eq!(found.pair_tokens, PairTokens::AtMost(u32::MAX));
        assert_eq!((found.query_tokens_max, found.document_tokens_max), (Some(u32::MAX), Some(u32::MAX)));
        let mut found = fields(&mut Fields::parse(b"{}").unwrap()).unwrap();
        assert_eq!(found, Truncation::default());
        headers(&headers_of(&[("x-podium-pair-tokens-max", "9")]), &mut found).unwrap();
        assert_eq!(found.pair_tokens, PairTokens::AtMost(9));
    }

    #[test]
    fn each_policy_has_a_name() {
        for policy in Overflow::ALL {
            assert_eq!(one_of("truncation", policy.name(), POLICIES).unwrap(), policy);
            assert_eq!(serde_json::to_value(policy).unwrap(), policy.name());
        }
        for side in [Side::Left, Side::Right] {
            assert_eq!(one_of("truncation_side", side.name(), SIDES).unwrap(), side);
            assert_eq!(serde_json::to_value(side).unwrap(), side.name());
        }
    }

    #[test]
    fn what_cannot_be_meant_is_named_with_what_can() {
        let tokens = "is neither a whole number of at least 1 nor -1, what the model reads";
        for (body, expected) in [
            (
                r#"{"truncation": "some"}"#,
                "truncation: `some` is not one of truncate, longest_first, document_only, refuse".to_owned(),
            ),
            (r#"{"truncation_side": "up"}"#, "truncation_side: `up` is not one of left, right".to_owned()),
            (r#"{"pair_tokens_max": 0}"#, format!("pair_tokens_max: `0` {tokens}")),
            (r#"{"pair_tokens_max": -2}"#, format!("pair_tokens_max: `-2` {tokens}")),
            (r#"{"pair_tokens_max": 1.5}"#, format!("pair_tokens_max: `1.5` {tokens}")),
            (
                r#"{"pair_tokens_max": "9"}"#,
                "pair_tokens_max: must be a whole number, and is a string".to_owned(),
            ),
            (
                r#"{"query_tokens_max": 0}"#,
                "query_tokens_max: 0 is not a whole number of at least 1".to_owned(),
            ),
            (
                r#"{"document_tokens_max": -1}"#,
                "document_tokens_max: -1 is not a whole number of at least 1".to_owned(),
            ),
        ] {
            let error = fields(&mut Fields::parse(body.as_bytes()).unwrap()).unwrap_err();
            assert_eq!(error.full_message(), expected);
        }
        for (name, value) in [
            ("x-podium-truncation", "some"),
            ("x-podium-truncation-side", "up"),
            ("x-podium-pair-tokens-max", "0"),
            ("x-podium-pair-tokens-max", "many"),
            ("x-podium-query-tokens-max", "0"),
            ("x-podium-query-tokens-max", "-1"),
            ("x-podium-document-tokens-max", "1.5"),
        ] {
            let error = headers(&headers_of(&[(name, value)]), &mut Truncation::default()).unwrap_err();
            assert_eq!(error.field.as_deref(), Some(name), "{value}");
            assert!(error.message.contains(&format!("`{value}`")), "{}", error.message);
        }
    }
}
