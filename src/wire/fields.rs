//! The fields of a JSON body. One pass reads all of them before the dialect is known; then the dialect takes them one by
//! one, and each error names its field.

use super::{ApiError, Code, Dialect};
use crate::base::Ns;
use crate::rerank::{Options, Policy, Priority, Query, ScoreForm};
use http::{HeaderMap, HeaderValue};
use serde::de::{Deserialize, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};
use std::collections::BTreeSet;
use std::fmt;
use std::sync::{Arc, LazyLock};

/// The longest latency budget: an hour.
const BUDGET_MS_MAX: f64 = 3_600_000.0;

/// Every field of any dialect, sorted. The values of other fields are skipped.
static NAMES: LazyLock<Vec<&str>> = LazyLock::new(|| {
    let fields = Dialect::ALL.into_iter().flat_map(|dialect| dialect.spec().fields);
    fields.copied().collect::<BTreeSet<_>>().into_iter().collect()
});

/// The fields of a body, in its order. A field that was taken is null.
#[derive(Default)]
pub(super) struct Fields {
    known: Vec<(&'static str, Field)>,
    unknown: Vec<String>,
    /// The documents' own ids, if the dialect returns them.
    pub ids: Vec<Option<String>>,
    /// The other dialects of the path that can read this body.
    pub shared: Vec<Dialect>,
    /// Whether the answer is that of one pair instead of a list.
    pub single: bool,
    /// Our names of fields and the body's, if the dialect has several.
    pub names: Vec<(&'static str, &'static str)>,
    /// Warnings for the caller: ignored fields and converted values.
    pub warnings: Vec<String>,
}

/// A value of a known field.
pub(super) enum Field {
    Null,
    Bool(bool),
    Number(f64),
    Text(Arc<str>),
    List(Vec<Item>),
    Object(Map<String, Value>),
}

/// An element of a list.
pub(super) enum Item {
    Text(Arc<str>),
    Object(Map<String, Value>),
    List(Vec<Item>),
    /// The kind of any other value.
    Other(&'static str),
}

impl Field {
    fn kind(&self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Bool(_) => "a boolean",
            Self::Number(_) => "a number",
            Self::Text(_) => "a string",
            Self::List(_) => "a list",
            Self::Object(_) => "an object",
        }
    }
}

impl Fields {
    /// Reads a body.
    ///
    /// # Errors
    /// Names the position at which the body is not valid.
    pub fn parse(body: &[u8]) -> Result<Self, ApiError> {
        let invalid = |message: String| ApiError::new(Code::InvalidRequest, message);
        let body = without_bom(body);
        if body.is_empty() {
            return Err(invalid("the body is empty, and must be a JSON object".to_owned()));
        }
        let text = std::str::from_utf8(body)
            .map_err(|error| invalid(format!("the body is not UTF-8 at byte {}", error.valid_up_to())))?;
        serde_json::from_str(text).map_err(|error| invalid(format!("the body is not valid: {error}")))
    }

    /// Whether the body has a field, null or not.
    pub fn has(&self, name: &str) -> bool {
        self.known.iter().any(|(known, _)| *known == name)
    }

    /// The number of the body's fields that other dialects know and this one does not.
    pub fn foreign(&self, known: &[&str]) -> usize {
        self.known.iter().filter(|(name, _)| !known.contains(name)).count()
    }

    /// Fields that a dialect does not know. One that another dialect knows is absent if it is null.
    pub fn unknown(&self, known: &[&str]) -> Vec<String> {
        let stated = self.known.iter().filter(|(_, field)| !matches!(field, Field::Null));
        let foreign = stated.map(|(name, _)| *name).filter(|name| !known.contains(name));
        self.unknown.iter().cloned().chain(foreign.map(str::to_owned)).collect()
    }

    /// The ids of the documents; empty if no document has one.
    ///
    /// # Errors
    /// If an id is not a string.
    pub fn document_ids(&self) -> Result<Vec<Option<String>>, ApiError> {
        let list = self.known.iter().find(|(name, _)| *name == "documents");
        let Some((_, Field::List(items))) = list else { return Ok(Vec::new()) };
        let id = |(place, item): (usize, &Item)| match item {
            Item::Object(object) => match object.get("id") {
                None | Some(Value::Null) => Ok(None),
                Some(Value::String(id)) => Ok(Some(id.clone())),
                Some(_) => Err(ApiError::invalid(format!("documents[{place}]"), "`id` must be a string")),
            },
            Item::Text(_) | Item::List(_) | Item::Other(_) => Ok(None),
        };
        let ids: Vec<Option<String>> = items.iter().enumerate().map(id).collect::<Result<_, _>>()?;
        Ok(if ids.iter().all(Option::is_none) { Vec::new() } else { ids })
    }

    /// Takes a field. Null is the same as absent.
    pub fn take(&mut self, name: &str) -> Option<Field> {
        debug_assert!(NAMES.contains(&name), "{name} is listed");
        let (_, field) = self.known.iter_mut().find(|(known, _)| *known == name)?;
        match std::mem::replace(field, Field::Null) {
            Field::Null => None,
            field => Some(field),
        }
    }

    /// Takes a string.
    pub fn text(&mut self, name: &str) -> Result<Option<String>, ApiError> {
        match self.take(name) {
            None => Ok(None),
            Some(Field::Text(text)) => Ok(Some(text.as_ref().to_owned())),
            Some(other) => Err(must_be(name, "a string", &other)),
        }
    }

    /// Takes a boolean.
    pub fn bool(&mut self, name: &str) -> Result<Option<bool>, ApiError> {
        match self.take(name) {
            None => Ok(None),
            Some(Field::Bool(value)) => Ok(Some(value)),
            Some(Field::Text(text))
                if ["true", "false"].iter().any(|word| text.eq_ignore_ascii_case(word)) =>
            {
                self.warnings.push(format!("`{name}` is a string, and was read as a boolean"));
                Ok(Some(text.eq_ignore_ascii_case("true")))
            }
            Some(other) => Err(must_be(name, "a boolean", &other)),
        }
    }

    /// Takes a whole number, which may be negative.
    pub fn integer(&mut self, name: &str) -> Result<Option<i64>, ApiError> {
        match self.take(name) {
            None => Ok(None),
            Some(Field::Number(value)) if value.fract() == 0.0 => Ok(Some(value as i64)),
            Some(Field::Number(value)) => {
                Err(ApiError::invalid(name, format!("{value} is not a whole number")))
            }
            Some(other) => Err(must_be(name, "a whole number", &other)),
        }
    }

    /// Takes a whole number of at least `min`.
    pub fn count(&mut self, name: &str, min: u32) -> Result<Option<u32>, ApiError> {
        match self.take(name) {
            None => Ok(None),
            Some(Field::Number(value)) if value.fract() == 0.0 && value >= f64::from(min) => {
                // A number above `u32::MAX` stands for that: there are never more tokens or documents.
                Ok(Some(value as u32))
            }
            Some(Field::Number(value)) => {
                Err(ApiError::invalid(name, format!("{value} is not a whole number of at least {min}")))
            }
            Some(other) => Err(must_be(name, "a whole number", &other)),
        }
    }

    /// Takes the number of results, at least 1.
    pub fn top(&mut self, name: &str) -> Result<Option<usize>, ApiError> {
        Ok(self.count(name, 1)?.map(|top| top as usize))
    }

    /// Takes `raw_scores`: logits instead of probabilities.
    pub fn raw_scores(&mut self) -> Result<ScoreForm, ApiError> {
        let raw = self.bool("raw_scores")?.unwrap_or(false);
        Ok(if raw { ScoreForm::Logit } else { ScoreForm::Probability })
    }

    /// Takes the query, which must be present and not empty.
    pub fn query(&mut self) -> Result<Query, ApiError> {
        match self.take("query") {
            Some(Field::Text(text)) => shared_query("query", &text),
            Some(other) => Err(must_be("query", "a string", &other)),
            None => Err(ApiError::invalid("query", "is missing")),
        }
    }

    /// Takes a list, which must be present.
    pub fn items(&mut self, name: &str) -> Result<Vec<Item>, ApiError> {
        match self.take(name) {
            Some(Field::List(items)) => Ok(items),
            Some(other) => Err(must_be(name, "a list", &other)),
            None => Err(ApiError::invalid(name, "is missing")),
        }
    }

    /// Takes a list of strings, which must be present and not empty.
    pub fn texts(&mut self, name: &str) -> Result<Vec<Arc<str>>, ApiError> {
        let items = self.items(name)?;
        not_empty(name, &items)?;
        items.into_iter().enumerate().map(|(place, item)| item.text(name, place)).collect()
    }

    /// Takes a list of strings or objects with a text, which must be present.
    pub fn documents(&mut self, name: &str) -> Result<Vec<Arc<str>>, ApiError> {
        let items = self.items(name)?;
        items.into_iter().enumerate().map(|(place, item)| item.text_or_object(name, place)).collect()
    }

    /// Whether a field is a list of strings only.
    pub fn is_list_of_texts(&self, name: &str) -> bool {
        let field = self.known.iter().find(|(known, _)| *known == name);
        let Some((_, Field::List(items))) = field else { return false };
        items.iter().all(|item| matches!(item, Item::Text(_)))
    }

    /// Takes one of several words.
    pub fn word<T: Copy>(&mut self, name: &str, words: &[(&str, T)]) -> Result<Option<T>, ApiError> {
        self.text(name)?.map(|word| one_of(name, &word, words)).transpose()
    }

    /// Takes the instruction: `instruction`, as vLLM's and llama.cpp's clients name it, or `instruct`, as SGLang's and
    /// DashScope's do.
    pub fn instruction(&mut self) -> Result<Option<String>, ApiError> {
        let (found, other) = (self.text("instruction")?, self.text("instruct")?);
        match (&found, &other) {
            (Some(_), Some(_)) => {
                self.warnings.push("`instruct` was ignored: `instruction` was read".to_owned());
            }
            (None, Some(_)) => self.names.push(("instruction", "instruct")),
            (_, None) => {}
        }
        Ok(found.or(other))
    }

    /// Takes our own fields.
    pub fn options(&mut self) -> Result<Options, ApiError> {
        let latency_budget = match self.take("latency_budget_ms") {
            None => None,
            Some(Field::Number(millis)) => Some(budget("latency_budget_ms", millis)?),
            Some(other) => return Err(must_be("latency_budget_ms", "a number", &other)),
        };
        Ok(Options {
            latency_budget,
            priority: self.word("priority", PRIORITIES)?.unwrap_or_default(),
            policy: self.word("policy", POLICIES)?,
            top_k: self.count("top_k", 1)?,
        })
    }
}

pub(super) const PRIORITIES: &[(&str, Priority)] =
    &[("high", Priority::High), ("normal", Priority::Normal), ("low", Priority::Low)];

pub(super) const POLICIES: &[(&str, Policy)] =
    &[("auto", Policy::Auto), ("full", Policy::Full), ("topk", Policy::TopK), ("fallback", Policy::Fallback)];

/// Reads the `x-podium-*` headers of a request. They take precedence over the body, so that a gateway can set them.
pub(super) fn options(headers: &HeaderMap, options: &mut Options) -> Result<(), ApiError> {
    if let Some((name, text)) = header(headers, "x-podium-latency-budget-ms")? {
        let millis = text.parse().unwrap_or(f64::NAN);
        options.latency_budget = Some(budget(name, millis)?);
    }
    if let Some((name, text)) = header(headers, "x-podium-priority")? {
        options.priority = one_of(name, text, PRIORITIES)?;
    }
    if let Some((name, text)) = header(headers, "x-podium-policy")? {
        options.policy = Some(one_of(name, text, POLICIES)?);
    }
    if let Some((name, text)) = header(headers, "x-podium-top-k")? {
        options.top_k = Some(at_least_one(name, text)?);
    }
    Ok(())
}

/// The header of an instruction.
pub(super) const INSTRUCTION: &str = "x-podium-instruction";

/// Reads the header of an instruction: UTF-8, plain or percent-encoded. A `%` that no two hexadecimal digits follow is
/// plain.
pub(super) fn instruction(headers: &HeaderMap) -> Result<Option<String>, ApiError> {
    let Some(value) = only(headers, INSTRUCTION)? else { return Ok(None) };
    let text = percent_encoding::percent_decode(value.as_bytes()).decode_utf8();
    let text = text.map_err(|_| ApiError::invalid(INSTRUCTION, "is not UTF-8, plain or percent-encoded"))?;
    Ok(Some(text.trim().to_owned()))
}

/// A header's value. A client that sends two and a proxy that adds its own may mean different ones.
pub(super) fn only<'a>(
    headers: &'a HeaderMap,
    name: &'static str,
) -> Result<Option<&'a HeaderValue>, ApiError> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (found, None) => Ok(found),
        (_, Some(_)) => Err(ApiError::invalid(name, "is there twice; send one such header")),
    }
}

pub(super) fn header<'a>(
    headers: &'a HeaderMap,
    name: &'static str,
) -> Result<Option<(&'static str, &'a str)>, ApiError> {
    let Some(value) = only(headers, name)? else { return Ok(None) };
    let text = value.to_str().map_err(|_| ApiError::invalid(name, "is not ASCII text"))?;
    Ok(Some((name, text.trim())))
}

/// A number that is whole and not negative. In JSON `5.0` is the integer 5. Numbers above `u64::MAX` stand for that.
pub fn whole(value: &Value) -> Option<u64> {
    let of_float = |value: f64| (value.fract() == 0.0 && value >= 0.0).then_some(value as u64);
    value.as_u64().or_else(|| value.as_f64().and_then(of_float))
}

/// Reads a whole number of at least 1. As in bodies, a number above `u32::MAX` stands for that.
pub(super) fn at_least_one(name: &str, text: &str) -> Result<u32, ApiError> {
    let is_digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let count = is_digits.then(|| text.parse().unwrap_or(u32::MAX)).filter(|&count| count >= 1);
    count.ok_or_else(|| ApiError::invalid(name, format!("`{text}` is not a whole number of at least 1")))
}

pub(super) fn budget(name: &str, millis: f64) -> Result<Ns, ApiError> {
    if (0.0..=BUDGET_MS_MAX).contains(&millis) {
        return Ok(Ns((millis * 1e6) as u64));
    }
    Err(ApiError::invalid(name, format!("must be a number of milliseconds from 0 to {BUDGET_MS_MAX}")))
}

pub(super) fn one_of<T: Copy>(name: &str, word: &str, words: &[(&str, T)]) -> Result<T, ApiError> {
    let found = words.iter().find(|(known, _)| *known == word);
    found.map(|&(_, value)| value).ok_or_else(|| {
        let known: Vec<&str> = words.iter().map(|(known, _)| *known).collect();
        ApiError::invalid(name, format!("`{word}` is not one of {}", known.join(", ")))
    })
}

pub(super) fn shared_query(name: &str, text: &str) -> Result<Query, ApiError> {
    match text {
        "" => Err(ApiError::invalid(name, "must not be empty")),
        text => Ok(Query::Shared(text.to_owned())),
    }
}

pub(super) fn not_empty<T>(name: &str, list: &[T]) -> Result<(), ApiError> {
    match list {
        [] => {
            Err(ApiError { code: Code::Empty, ..ApiError::invalid(name, "must have at least one element") })
        }
        _ => Ok(()),
    }
}

/// Removes the byte order mark that some editors and clients write before UTF-8.
pub(super) fn without_bom(body: &[u8]) -> &[u8] {
    body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(body)
}

pub(super) fn must_be(name: &str, wanted: &str, found: &Field) -> ApiError {
    ApiError::invalid(name, format!("must be {wanted}, and is {}", found.kind()))
}

impl Item {
    fn kind(&self) -> &'static str {
        match self {
            Self::Text(_) => "a string",
            Self::Object(_) => "an object",
            Self::List(_) => "a list",
            Self::Other(kind) => kind,
        }
    }

    /// A string.
    pub fn text(self, name: &str, place: usize) -> Result<Arc<str>, ApiError> {
        match self {
            Self::Text(text) => Ok(text),
            other => {
                let message = format!("must be a string, and is {}", other.kind());
                Err(ApiError::invalid(format!("{name}[{place}]"), message))
            }
        }
    }

    /// A string, or the text of an object.
    pub fn text_or_object(self, name: &str, place: usize) -> Result<Arc<str>, ApiError> {
        let invalid = |message: String| ApiError::invalid(format!("{name}[{place}]"), message);
        match self {
            Self::Text(text) => Ok(text),
            Self::Object(object) => text_of(&object).ok_or_else(|| invalid(NO_TEXT.to_owned())),
            Self::List(_) | Self::Other(_) => {
                let kind = self.kind();
                Err(invalid(format!("must be a string or an object with a `text`, and is {kind}")))
            }
        }
    }
}

/// The error of an object without a text that can be ranked.
pub(super) const NO_TEXT: &str = "must have a `text`, or a `content` of type text";

/// The text of an object: its `text`, or vLLM's `content`, which is a string or a list of parts.
pub(super) fn text_of(object: &Map<String, Value>) -> Option<Arc<str>> {
    let field = |name| object.get(name).filter(|value| !value.is_null());
    match (field("text"), field("content")) {
        (Some(Value::String(text)), _) | (None, Some(Value::String(text))) => Some(text.as_str().into()),
        (None, Some(Value::Array(parts))) if !parts.is_empty() => {
            let texts: Option<Vec<&str>> = parts.iter().map(text_of_part).collect();
            Some(texts?.join("\n").into())
        }
        _ => None,
    }
}

/// The text of a part of `content`: `{type: "text", text}`. Images and other types have none.
pub(super) fn text_of_part(part: &Value) -> Option<&str> {
    let is_text = part.get("type").is_none_or(|kind| kind == "text");
    part.get("text").filter(|_| is_text)?.as_str()
}

impl<'de> Deserialize<'de> for Fields {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Body;

        impl<'de> Visitor<'de> for Body {
            type Value = Fields;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a JSON object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields, A::Error> {
                let mut fields = Fields::default();
                while let Some(name) = map.next_key::<std::borrow::Cow<str>>()? {
                    match NAMES.binary_search(&&*name).ok().map(|place| NAMES[place]) {
                        Some(known) if fields.has(known) => {
                            return Err(A::Error::custom(format!("field `{known}` is there twice")));
                        }
                        Some(known) => fields.known.push((known, map.next_value()?)),
                        None => {
                            // The name is cut, because it goes into a header.
                            fields.unknown.push(name.chars().take(64).collect());
                            map.next_value::<IgnoredAny>()?;
                        }
                    }
                }
                Ok(fields)
            }
        }

        deserializer.deserialize_map(Body)
    }
}

macro_rules! scalars {
    ($value:ty, $null:expr, $bool:expr, $number:expr, $text:expr) => {
        fn visit_unit<E: Error>(self) -> Result<$value, E> {
            Ok($null)
        }

        fn visit_bool<E: Error>(self, value: bool) -> Result<$value, E> {
            Ok($bool(value))
        }

        fn visit_u64<E: Error>(self, value: u64) -> Result<$value, E> {
            Ok($number(value as f64))
        }

        fn visit_i64<E: Error>(self, value: i64) -> Result<$value, E> {
            Ok($number(value as f64))
        }

        fn visit_f64<E: Error>(self, value: f64) -> Result<$value, E> {
            Ok($number(value))
        }

        fn visit_str<E: Error>(self, text: &str) -> Result<$value, E> {
            Ok($text(text.into()))
        }
    };
}

fn object<'de, A: MapAccess<'de>>(mut map: A) -> Result<Map<String, Value>, A::Error> {
    let mut object = Map::new();
    while let Some((name, value)) = map.next_entry()? {
        object.insert(name, value);
    }
    Ok(object)
}

impl<'de> Deserialize<'de> for Field {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;

        impl<'de> Visitor<'de> for Any {
            type Value = Field;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a value")
            }

            scalars!(Field, Field::Null, Field::Bool, Field::Number, Field::Text);

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Field, A::Error> {
                let mut items = Vec::new();
                while let Some(item) = list.next_element()? {
                    items.push(item);
                }
                Ok(Field::List(items))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Field, A::Error> {
                object(map).map(Field::Object)
            }
        }

        deserializer.deserialize_any(Any)
    }
}

impl<'de> Deserialize<'de> for Item {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;

        impl<'de> Visitor<'de> for Any {
            type Value = Item;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("an element")
            }

            scalars!(
                Item,
                Item::Other("null"),
                |_| Item::Other("a boolean"),
                |_| Item::Other("a number"),
                Item::Text
            );

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Item, A::Error> {
                let mut items = Vec::new();
                while let Some(item) = list.next_element()? {
                    items.push(item);
                }
                Ok(Item::List(items))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Item, A::Error> {
                object(map).map(Item::Object)
            }
        }

        deserializer.deserialize_any(Any)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_object_in_json_is_an_error_that_says_where() {
        let rows: [(&[u8], &str); 9] = [
            (b"", "the body is empty, and must be a JSON object"),
            (b"hello", "the body is not valid: expected value at line 1 column 1"),
            (b"[1]", "the body is not valid: invalid type: sequence, expected a JSON object"),
            (b"{\"query\": \"a\xff\"}", "the body is not UTF-8 at byte 12"),
            (
                br#"{"query": "\ud800"}"#,
                "the body is not valid: unexpected end of hex escape at line 1 column 18",
            ),
            (br#"{"query": "\ud800x"}"#, "the body is not valid: "),
            (br#"{"query": "a"} x"#, "the body is not valid: trailing characters at line 1 column 16"),
            (br#"{"query": "a", "query": "b"}"#, "the body is not valid: field `query` is there twice"),
            (br#"{"query": "a""#, "the body is not valid: EOF while parsing an object at line 1 column 13"),
        ];
        for (body, expected) in rows {
            let error = Fields::parse(body).err().expect("the body is wrong").message;
            assert!(error.starts_with(expected), "{error}");
        }
    }

    #[test]
    fn a_deep_nest_is_an_error_and_not_a_crash() {
        let nest = "[".repeat(100_000);
        for body in [format!("{{\"x\": {nest}"), format!("{{\"documents\": {nest}")] {
            assert!(Fields::parse(body.as_bytes()).is_err());
        }
    }

    #[test]
    fn a_field_of_another_type_is_named() {
        let mut fields =
            Fields::parse(br#"{"query": 5, "top_n": 1.5, "documents": ["a", 7], "model": []}"#).unwrap();
        let message = |error: ApiError| error.full_message();
        assert_eq!(fields.query().map_err(message).unwrap_err(), "query: must be a string, and is a number");
        let top_n = fields.count("top_n", 1).map_err(message).unwrap_err();
        assert_eq!(top_n, "top_n: 1.5 is not a whole number of at least 1");
        let documents = fields.texts("documents").map_err(message).unwrap_err();
        assert_eq!(documents, "documents[1]: must be a string, and is a number");
        assert_eq!(
            fields.text("model").map_err(message).unwrap_err(),
            "model: must be a string, and is a list"
        );
    }

    #[test]
    fn unknown_fields_are_remembered_and_not_read() {
        let fields = Fields::parse(br#"{"query": "a", "typo": {"deep": [1, 2]}, "texts": []}"#).unwrap();
        assert_eq!(fields.unknown(&["query"]), ["typo", "texts"]);
    }

    #[test]
    fn a_count_may_have_any_number_of_digits() {
        let huge = "1".repeat(40);
        for (text, expected) in
            [("1", 1), ("4294967295", u32::MAX), ("4294967296", u32::MAX), (&huge, u32::MAX)]
        {
            let headers = HeaderMap::from_iter([("x-podium-top-k".parse().unwrap(), text.parse().unwrap())]);
            let mut found = Options::default();
            options(&headers, &mut found).unwrap();
            assert_eq!(found.top_k, Some(expected), "{text}");
            let mut fields = Fields::parse(format!(r#"{{"top_k": {text}}}"#).as_bytes()).unwrap();
            assert_eq!(fields.count("top_k", 1).unwrap(), Some(expected), "{text}");
        }
    }

    #[test]
    fn headers_set_what_a_dialect_has_no_field_for() {
        let mut headers = HeaderMap::new();
        headers.insert("x-podium-latency-budget-ms", "12.5".parse().unwrap());
        headers.insert("x-podium-priority", "high".parse().unwrap());
        headers.insert("x-podium-policy", "topk".parse().unwrap());
        headers.insert("x-podium-top-k", "7".parse().unwrap());
        let mut found = Options::default();
        options(&headers, &mut found).unwrap();
        let expected = Options {
            latency_budget: Some(Ns(12_500_000)),
            priority: Priority::High,
            policy: Some(Policy::TopK),
            top_k: Some(7),
        };
        assert_eq!(found, expected);
        for (name, value) in [
            ("x-podium-latency-budget-ms", "-1"),
            ("x-podium-latency-budget-ms", "nan"),
            ("x-podium-latency-budget-ms", "3600001"),
            ("x-podium-priority", "urgent"),
            ("x-podium-top-k", "0"),
        ] {
            let headers = HeaderMap::from_iter([(name.parse().unwrap(), value.parse().unwrap())]);
            let error = options(&headers, &mut Options::default()).unwrap_err();
            assert_eq!(error.field.as_deref(), Some(name), "{value}");
        }
    }
}
