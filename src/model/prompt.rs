//! The prompt of a decoder: declared in `podium.json`, rendered by the model's own chat template, or a known one that its
//! model card has.

use super::arch::{Answers, Fault, Source};
use super::directory::{CROSS_ENCODER_CONFIG, SENTENCE_CONFIG, TOKENIZER_CONFIG};
use super::known::{KNOWN, Known};
use crate::token::{InstructedText, Prompt, PromptText, Tokenizer};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{Environment, Error, ErrorKind, context};
use serde::Deserialize;
use serde_json::{Map, Value, json};

pub(super) const CHAT_TEMPLATE: &str = "chat_template.jinja";

/// A prompt in `podium.json`.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub(super) enum DeclaredPrompt {
    /// One of the known ones.
    Name(String),
    /// A text.
    Text(DeclaredText),
}

/// A prompt as a text.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct DeclaredText {
    /// Has `{query}` and then `{document}`, and may have `{instruction}` before them.
    text: String,
    #[serde(default)]
    instruction: String,
    /// The token whose logit is the score; the model's own module or classifier, if it is missing.
    yes: Option<String>,
    /// The token whose logit is subtracted.
    no: Option<String>,
}

/// The files that may say what a decoder's prompt is.
#[derive(Default)]
pub(super) struct PromptFiles {
    pub chat_template: Option<Vec<u8>>,
    pub tokenizer_config: Option<Vec<u8>>,
    pub sentence_config: Option<Vec<u8>>,
    pub cross_encoder_config: Option<Vec<u8>>,
    pub card: Option<Vec<u8>>,
}

/// A decoder's prompt, and what it says about the score.
#[derive(Debug)]
pub(super) struct Found {
    pub prompt: Prompt,
    pub answers: Option<Answers>,
    /// Factor of the tokens' logits.
    pub scale: f32,
    /// Most tokens of a pair.
    pub tokens_max: Option<u32>,
}

impl Known {
    fn found(&self, tokenizer: &Tokenizer) -> Result<Found, Fault> {
        let answers = answers(tokenizer, self.yes, self.no)?;
        let (scale, tokens_max) = (self.scale, self.tokens_max);
        Ok(Found { prompt: self.prompt(), answers: Some(answers), scale, tokens_max })
    }
}

/// The prompt of a decoder.
///
/// # Errors
/// The file that is wrong, or what to write where none says what the prompt is.
pub(super) fn find(
    declared: Option<&DeclaredPrompt>,
    files: &PromptFiles,
    tokenizer: &Tokenizer,
) -> Result<Found, Fault> {
    match declared {
        Some(DeclaredPrompt::Name(name)) => {
            let known = KNOWN.iter().find(|known| known.name == name);
            let known = known
                .ok_or_else(|| in_podium(format!("prompt: `{name}` is not known; {}", known_names())))?;
            return known.found(tokenizer);
        }
        Some(DeclaredPrompt::Text(text)) => return text.found(tokenizer),
        None => {}
    }
    let own = own_template(files)?;
    let rendered = own.as_ref().map(OwnTemplate::render);
    if let (Some(own), Some(Ok(Some(rendered)))) = (&own, &rendered) {
        return rendered.found(own.file, tokenizer);
    }
    let card = String::from_utf8_lossy(files.card.as_deref().unwrap_or_default());
    if let Some(known) = KNOWN.iter().find(|known| card.contains(known.mark)) {
        return known.found(tokenizer);
    }
    let why = match rendered {
        Some(Err(error)) => format!("its chat template does not render a query and a document ({error})"),
        Some(Ok(_)) => "its chat template has no place for a query and a document".to_owned(),
        None => "it has no chat template".to_owned(),
    };
    Err(in_podium(format!(
        "prompt: a decoder scores well only in the prompt that it was trained with, and {why}; name the prompt here: {}",
        known_names()
    )))
}

/// Refuses a prompt where the model is no decoder.
pub(super) fn refuse(
    declared: Option<&DeclaredPrompt>,
    files: &PromptFiles,
    source: &Source,
) -> Result<(), Fault> {
    let of = &source.architecture;
    if declared.is_some() {
        return Err(in_podium(format!("prompt: {of} has none; a decoder has one")));
    }
    match default_prompt(files)? {
        None => Ok(()),
        Some(prompt) => Err(Fault {
            file: CROSS_ENCODER_CONFIG.into(),
            reason: format!("default_prompt_name: `{prompt}` before each query is not served for {of}"),
        }),
    }
}

/// The prompt that sentence-transformers puts before each query, where one is the default.
fn default_prompt(files: &PromptFiles) -> Result<Option<String>, Fault> {
    let config = object(CROSS_ENCODER_CONFIG, files.cross_encoder_config.as_deref())?;
    let name = config.get("default_prompt_name").and_then(Value::as_str);
    let prompt = name.and_then(|name| config.get("prompts")?.get(name)?.as_str());
    Ok(prompt.filter(|prompt| !prompt.is_empty()).map(str::to_owned))
}

/// The keys of a file.
fn object(file: &'static str, content: Option<&[u8]>) -> Result<Map<String, Value>, Fault> {
    let Some(content) = content else { return Ok(Map::new()) };
    serde_json::from_slice(content).map_err(|error| Fault { file: file.into(), reason: error.to_string() })
}

fn in_podium(reason: String) -> Fault {
    Fault { file: "podium.json".into(), reason }
}

fn known_names() -> String {
    let names = KNOWN.each_ref().map(|known| format!("\"{}\"", known.name)).join(", ");
    format!("{names}, or {{\"text\": \"... {{query}} ... {{document}} ...\", \"yes\": ..., \"no\": ...}}")
}

fn answers(tokenizer: &Tokenizer, yes: &str, no: Option<&str>) -> Result<Answers, Fault> {
    let id = |token: &str| {
        let id = tokenizer.token_id(token);
        id.ok_or_else(|| in_podium(format!("prompt: `{token}` is not a token of the model's tokenizer")))
    };
    Ok(Answers { yes: id(yes)?, no: no.map(id).transpose()? })
}

impl DeclaredText {
    fn found(&self, tokenizer: &Tokenizer) -> Result<Found, Fault> {
        let parts = self.text.split_once("{query}");
        let parts = parts.and_then(|(before, rest)| Some((before, rest.split_once("{document}")?)));
        let Some((before, (between, after))) = parts else {
            return Err(in_podium("prompt.text: {query} and then {document} are missing".to_owned()));
        };
        if between.contains("{instruction}") || after.contains("{instruction}") {
            return Err(in_podium("prompt.text: {instruction} must stand before {query}".to_owned()));
        }
        let place = before.split_once("{instruction}");
        if place.is_some_and(|(_, rest)| rest.contains("{instruction}")) {
            return Err(in_podium("prompt.text: {instruction} is there twice".to_owned()));
        }
        let [own, empty] =
            [&*self.instruction, ""].map(|instruction| before.replace("{instruction}", instruction));
        let instructed =
            place.map(|(before, after)| InstructedText { before, after, empty: &empty, is_trimmed: false });
        let answers = match (&self.yes, &self.no) {
            (Some(yes), no) => Some(answers(tokenizer, yes, no.as_deref())?),
            (None, Some(_)) => {
                return Err(in_podium("prompt.yes is missing, and prompt.no is there".to_owned()));
            }
            (None, None) => None,
        };
        let text = PromptText { before: &own, between, after, is_trimmed: false, instructed };
        let prompt = Prompt::of_text(tokenizer, &text);
        let prompt = prompt.map_err(|error| in_podium(format!("prompt.text: {error}")))?;
        if place.is_some() && prompt.instructed.is_none() {
            return Err(in_podium(
                "prompt.text: the tokens of a request's instruction would mix with those around {instruction}; put a \
                 special token, or a colon and a space, between {instruction} and {query}, or write the words of the \
                 instruction in place of {instruction}"
                    .to_owned(),
            ));
        }
        Ok(Found { prompt, answers, scale: 1.0, tokens_max: None })
    }
}

/// A model's chat template, with what it is rendered with.
struct OwnTemplate {
    file: &'static str,
    source: String,
    /// Passed as a message of the system, as sentence-transformers does.
    instruction: Option<String>,
    variables: Map<String, Value>,
}

/// A prompt as a chat template renders it: before the query, between it and the document, and after that.
#[derive(Debug, PartialEq)]
struct Rendered {
    texts: [String; 3],
    is_trimmed: bool,
    /// None if the template has no place for an instruction before the query.
    instructed: Option<RenderedInstruction>,
}

/// What a chat template renders before the query if there is an instruction.
#[derive(Debug, PartialEq)]
struct RenderedInstruction {
    before: String,
    after: String,
    /// In place of both for an empty instruction.
    empty: String,
    is_trimmed: bool,
}

/// The chat template in a model's files.
fn own_template(files: &PromptFiles) -> Result<Option<OwnTemplate>, Fault> {
    let tokenizer = object(TOKENIZER_CONFIG, files.tokenizer_config.as_deref())?;
    let sentence = object(SENTENCE_CONFIG, files.sentence_config.as_deref())?;
    let in_config = || {
        let template = tokenizer.get("chat_template")?;
        let named = template.as_array().and_then(|all| all.iter().find(|one| one["name"] == "default"));
        named.map_or(template, |named| &named["template"]).as_str().map(str::to_owned)
    };
    let (file, source) = match (&files.chat_template, in_config()) {
        (Some(own), _) => (CHAT_TEMPLATE, String::from_utf8_lossy(own).into_owned()),
        (None, Some(source)) => (TOKENIZER_CONFIG, source),
        (None, None) => return Ok(None),
    };
    let stated = sentence.get("processing_kwargs").and_then(|all| all.get("chat_template"));
    let mut variables = stated.and_then(Value::as_object).cloned().unwrap_or_default();
    for (key, value) in tokenizer.iter().filter(|(key, _)| key.ends_with("_token")) {
        if let Some(token) = value.as_str().or_else(|| value.get("content")?.as_str()) {
            variables.entry(key.clone()).or_insert_with(|| token.into());
        }
    }
    Ok(Some(OwnTemplate { file, source, instruction: default_prompt(files)?, variables }))
}

/// Stand for the texts, with spaces that a template may take away.
const QUERY: &str = " the-query-of-this-pair ";
const DOCUMENT: &str = " the-document-of-this-pair ";
const INSTRUCTION: &str = " the-instruction-of-this-request ";

/// How a template may be given an instruction.
#[derive(Clone, Copy)]
enum Way {
    /// As a message of the system: sentence-transformers and vLLM.
    System,
    /// As a variable of this name: SGLang.
    Variable(&'static str),
}

impl OwnTemplate {
    /// The prompt; none if a text has no place in it, or not one.
    fn render(&self) -> Result<Option<Rendered>, Error> {
        let own = self.instruction.as_deref().map(|text| (Way::System, text));
        let text = self.text(own)?;
        let whole = split(&text, QUERY, DOCUMENT);
        let is_trimmed = whole.is_none();
        let Some(texts) = whole.or_else(|| split(&text, QUERY.trim(), DOCUMENT.trim())) else {
            return Ok(None);
        };
        let ways = [Way::System, Way::Variable("instruction"), Way::Variable("instruct")];
        let instructed = ways.into_iter().find_map(|way| self.instructed(way, &texts, is_trimmed));
        Ok(Some(Rendered { texts, is_trimmed, instructed }))
    }

    /// The place of an instruction that is given in one way; none if the template has none before the query, or not one,
    /// or if more than what stands there depends on it.
    fn instructed(&self, way: Way, texts: &[String; 3], is_trimmed: bool) -> Option<RenderedInstruction> {
        let [query, document] = [QUERY, DOCUMENT].map(|mark| if is_trimmed { mark.trim() } else { mark });
        let before = |instruction: &str| {
            let [before, between, after] =
                split(&self.text(Some((way, instruction))).ok()?, query, document)?;
            (between == texts[1] && after == texts[2]).then_some(before)
        };
        let (marked, empty) = (before(INSTRUCTION)?, before("")?);
        let place = |mark: &str, is_trimmed: bool| {
            let (before, after) = marked.split_once(mark).filter(|(_, after)| !after.contains(mark))?;
            let (before, after, empty) = (before.to_owned(), after.to_owned(), empty.clone());
            Some(RenderedInstruction { before, after, empty, is_trimmed })
        };
        place(INSTRUCTION, false).or_else(|| place(INSTRUCTION.trim(), true))
    }

    /// The text that the template renders around the two marks.
    fn text(&self, instruction: Option<(Way, &str)>) -> Result<String, Error> {
        let mut engine = Environment::new();
        // As `transformers` sets Jinja up.
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        engine.set_syntax(syntax.expect("the default delimiters differ"));
        engine.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        engine.add_function("raise_exception", |reason: String| -> Result<String, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, reason))
        });
        // What sentence-transformers takes for a template that reads parts of a message.
        let reads_parts = ["content[0]", ".type", "'type'", "\"type\"", "message.content["];
        let in_parts = reads_parts.iter().any(|mark| self.source.contains(mark));
        let message = |role: &str, text: &str| match in_parts {
            true => json!({"role": role, "content": [{"type": "text", "text": text}]}),
            false => json!({"role": role, "content": text}),
        };
        let (mut messages, mut variables) = (Vec::new(), self.variables.clone());
        match instruction {
            Some((Way::System, text)) => messages.push(message("system", text)),
            Some((Way::Variable(name), text)) => drop(variables.insert(name.to_owned(), text.into())),
            None => {}
        }
        messages.extend([message("query", QUERY), message("document", DOCUMENT)]);
        let messages = minijinja::Value::from(Serde(messages));
        let all = context! { messages, ..minijinja::Value::from(Serde(variables)) };
        engine.render_str(&self.source, all)
    }
}

/// What stands before, between and after the two marks; none if a mark is missing or there twice.
fn split(text: &str, query: &str, document: &str) -> Option<[String; 3]> {
    let (before, rest) = text.split_once(query)?;
    let (between, after) = rest.split_once(document)?;
    let once = !between.contains(query) && !after.contains(query) && !after.contains(document);
    once.then(|| [before, between, after].map(str::to_owned))
}

impl Rendered {
    fn found(&self, file: &'static str, tokenizer: &Tokenizer) -> Result<Found, Fault> {
        let [before, between, after] = self.texts.each_ref().map(String::as_str);
        let instructed = self.instructed.as_ref().map(|place| InstructedText {
            before: &place.before,
            after: &place.after,
            empty: &place.empty,
            is_trimmed: place.is_trimmed,
        });
        let text = PromptText { before, between, after, is_trimmed: self.is_trimmed, instructed };
        let prompt = Prompt::of_text(tokenizer, &text);
        let prompt = prompt.map_err(|error| Fault { file: file.into(), reason: error.to_string() })?;
        Ok(Found { prompt, answers: None, scale: 1.0, tokens_max: None })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rendered(source: &str, instruction: Option<&str>) -> Result<Option<Rendered>, String> {
        let template = OwnTemplate {
            file: CHAT_TEMPLATE,
            source: source.to_owned(),
            instruction: instruction.map(str::to_owned),
            variables: Map::from_iter([("bos_token".to_owned(), "<s>".into())]),
        };
        template.render().map_err(|error| error.to_string())
    }

    fn render(source: &str, instruction: Option<&str>) -> Result<Option<([String; 3], bool)>, String> {
        let rendered = rendered(source, instruction)?;
        Ok(rendered.map(|rendered| (rendered.texts, rendered.is_trimmed)))
    }

    /// As a reranker's chat template is written for messages in one text each.
    const FLAT: &str = r#"{%- set query = messages | selectattr("role", "eq", "query") | map(attribute="content") | first -%}
{{- bos_token }}{% for message in messages if message.role == "system" %}
<Instruct>: {{ message.content }}
{% endfor %}
<Query>: {{ query }}
<Document>: {{ messages[-1].content }}<|im_end|>

"#;

    #[test]
    fn a_chat_template_says_what_stands_around_the_texts() {
        let texts =
            |before: &str| [before.to_owned(), "\n<Document>: ".to_owned(), "<|im_end|>\n".to_owned()];
        assert_eq!(render(FLAT, None), Ok(Some((texts("<s><Query>: "), false))));
        let asked = texts("<s><Instruct>: judge\n<Query>: ");
        assert_eq!(render(FLAT, Some("judge")), Ok(Some((asked, false))));
        // A template for messages of several parts, with methods of Python's.
        let parts =
            r#"Q{{ messages[0]["content"][0].text.strip() }}D{{ messages[1].content[0].text | trim }}."#;
        let texts = ["Q", "D", "."].map(str::to_owned);
        assert_eq!(render(parts, None), Ok(Some((texts, true))));
    }

    #[test]
    fn a_chat_template_says_where_an_instruction_stands_and_what_an_empty_one_means() {
        let place = |before: &str, after: &str, empty: &str, is_trimmed| {
            let [before, after, empty] = [before, after, empty].map(str::to_owned);
            Some(RenderedInstruction { before, after, empty, is_trimmed })
        };
        let query = "Q{{ messages[-2].content }}D{{ messages[-1].content }}.";
        let system = r#"messages | selectattr("role", "eq", "system") | map(attribute="content") | first"#;
        let rows = [
            (FLAT, place("<s><Instruct>: ", "\n<Query>: ", "<s><Instruct>: \n<Query>: ", false)),
            (
                &format!("<I>: {{{{ {system} | default(\"own\") }}}}\n{query}"),
                place("<I>: ", "\nQ", "<I>: \nQ", false),
            ),
            // An empty one is none to this template.
            (
                &format!("<I>: {{{{ {system} | default(\"own\", true) | trim }}}}\n{query}"),
                place("<I>: ", "\nQ", "<I>: own\nQ", true),
            ),
            (&format!("{{{{ instruct | default(\"own\") }}}}\n{query}"), place("", "\nQ", "\nQ", false)),
            (
                &format!("{{% if instruction %}}I:{{{{ instruction }}}};{{% endif %}}{query}"),
                place("I:", ";Q", "Q", false),
            ),
            // After the query, twice, or none.
            ("Q{{ messages[-2].content }}D{{ messages[-1].content }}{{ instruction }}", None),
            (&format!("{{{{ instruction }}}}{{{{ instruction }}}}{query}"), None),
            ("Q{{ messages[-2].content }}D{{ messages[-1].content }}.", None),
        ];
        for (source, expected) in rows {
            assert_eq!(rendered(source, None).unwrap().unwrap().instructed, expected, "{source}");
        }
        // A model's own default does not move the place.
        let with_own = rendered(FLAT, Some("judge")).unwrap().unwrap();
        assert_eq!(with_own.instructed, rendered(FLAT, None).unwrap().unwrap().instructed);
    }

    #[test]
    fn a_chat_template_without_a_place_for_both_texts_is_none() {
        let chat = r#"{% for message in messages %}{% if message.role == "user" %}{{ message.content }}{% endif %}{% endfor %}"#;
        let twice = "{{ messages[0].content }}{{ messages[1].content }}{{ messages[0].content }}";
        let turned = "{{ messages[1].content }}{{ messages[0].content }}";
        for source in [chat, twice, turned, ""] {
            assert_eq!(render(source, None), Ok(None), "{source}");
        }
        let error = render(r#"{{ raise_exception("only chats") }}"#, None).unwrap_err();
        assert!(error.contains("only chats"), "{error}");
        assert!(render("{% for %}", None).is_err());
    }

    fn files(chat_template: Option<&str>, card: &str) -> PromptFiles {
        let bytes = |text: &str| Some(text.as_bytes().to_vec());
        PromptFiles {
            chat_template: chat_template.and_then(bytes),
            card: bytes(card),
            ..PromptFiles::default()
        }
    }

    fn declared(json: &str) -> Option<DeclaredPrompt> {
        Some(serde_json::from_str(json).unwrap())
    }

    fn find_here(declared: Option<&DeclaredPrompt>, files: &PromptFiles) -> Result<Found, String> {
        let tokenizer = Tokenizer::parse(&crate::model::Model::bundled().tokenizer).unwrap();
        find(declared, files, &tokenizer).map_err(|Fault { file, reason }| format!("{file}: {reason}"))
    }

    #[test]
    fn a_known_prompt_is_found_by_its_name_or_by_the_model_s_card() {
        for known in &KNOWN {
            let by_card = find_here(None, &files(None, &format!("# Model\n{}\n", known.mark)));
            let name = declared(&format!("\"{}\"", known.name));
            let by_name = find_here(name.as_ref(), &PromptFiles::default());
            match known.yes {
                // The bundled tokenizer has lower case only.
                "Yes" => assert!(by_name.err().unwrap().contains("`Yes` is not a token"), "{}", known.name),
                _ => assert_eq!(by_card.unwrap().prompt, by_name.unwrap().prompt),
            }
        }
    }

    #[test]
    fn a_decoder_without_a_prompt_is_refused_with_what_to_write() {
        let rows = [
            (
                None,
                "it has no chat template; name the prompt here: \"qwen3-reranker\", \"mxbai-rerank-v2\", \"zerank-2\", or {\"text\"",
            ),
            (Some("hello"), "its chat template has no place for a query and a document; name"),
            (
                Some("{{ raise_exception('only chats') }}"),
                "its chat template does not render a query and a document (invalid operation: only chats",
            ),
        ];
        for (template, expected) in rows {
            let error = find_here(None, &files(template, "a card")).err().unwrap();
            let start = "podium.json: prompt: a decoder scores well only in the prompt that it was trained with, and ";
            assert!(error.starts_with(&format!("{start}{expected}")), "{error}");
        }
        for (json, expected) in [
            (r#""qwen4""#, "prompt: `qwen4` is not known; \"qwen3-reranker\", "),
            (r#"{"text": "{document} {query}"}"#, "prompt.text: {query} and then {document} are missing"),
            (
                r#"{"text": "{query} {instruction} {document}"}"#,
                "prompt.text: {instruction} must stand before {query}",
            ),
            (
                r#"{"text": "{query} {document}", "no": "no"}"#,
                "prompt.yes is missing, and prompt.no is there",
            ),
            (r#"{"text": "{query} {document}", "yes": "noway"}"#, "prompt: `noway` is not a token"),
            (r#"{"text": "{query}{document}"}"#, "prompt.text: the prompt cannot be cut into pieces: "),
        ] {
            let error = find_here(declared(json).as_ref(), &PromptFiles::default()).err().unwrap();
            assert!(error.starts_with(&format!("podium.json: {expected}")), "{error}");
        }
    }

    #[test]
    fn a_declared_text_has_the_instruction_in_its_place() {
        let json = r#"{"text": "[CLS] {instruction}: {query} [SEP] {document} [SEP]", "instruction": "judge", "yes": "yes"}"#;
        let found = find_here(declared(json).as_ref(), &PromptFiles::default()).unwrap();
        assert_eq!(found.prompt.text("one", "two"), "[CLS] judge: one [SEP] two [SEP]");
        let text = |instruction: &str| found.prompt.instructed_text(instruction, "one", "two");
        assert_eq!(text("find"), "[CLS] find: one [SEP] two [SEP]");
        assert_eq!(text(""), "[CLS] : one [SEP] two [SEP]");
        assert!(found.answers.is_some_and(|answers| answers.no.is_none()));
    }

    #[test]
    fn a_place_for_an_instruction_that_cannot_be_cut_from_the_query_is_an_error() {
        let mixed = Err("podium.json: prompt.text: the tokens of a request's instruction would mix with");
        for (text, expected) in [
            ("[CLS] {instruction}: {query} [SEP] {document} [SEP]", Ok(true)),
            ("[CLS] {instruction} [SEP] {query} [SEP] {document} [SEP]", Ok(true)),
            ("[CLS] {query} [SEP] {document} [SEP]", Ok(false)),
            ("[CLS] {instruction}, {query} [SEP] {document} [SEP]", mixed),
            (
                "[CLS] {instruction}: {instruction}: {query} [SEP] {document} [SEP]",
                Err("podium.json: prompt.text: {instruction} is there twice"),
            ),
        ] {
            let json = json!({"text": text, "instruction": "judge", "yes": "yes"}).to_string();
            match (find_here(declared(&json).as_ref(), &PromptFiles::default()), expected) {
                (Ok(found), expected) => {
                    assert_eq!(Ok(found.prompt.instructed.is_some()), expected, "{text}")
                }
                (Err(error), Err(expected)) => assert!(error.starts_with(expected), "{error}"),
                (Err(error), Ok(_)) => panic!("{text}: {error}"),
            }
        }
    }

    #[test]
    fn a_known_prompt_with_its_default_as_the_instruction_is_the_same() {
        let [qwen3, mxbai, zerank] = KNOWN.each_ref().map(Known::prompt);
        let default = "Given a web search query, retrieve relevant passages that answer the query";
        assert_eq!(qwen3.instructed_text(default, "one", "two"), qwen3.text("one", "two"));
        let section = "<Instruct>: \n<Query>: one\n<Document>: two<|im_end|>";
        assert!(qwen3.instructed_text("", "one", "two").contains(section));
        // The package of mxbai has an instruction before the query, and takes an empty one for none.
        assert_eq!(mxbai.instructed_text("", "one", "two"), mxbai.text("one", "two"));
        let section = "<|im_start|>user\ninstruction: judge\nquery: one\ndocument: two\n";
        assert!(mxbai.instructed_text("judge", "one", "two").contains(section));
        assert_eq!(zerank.instructed, None);
    }

    #[test]
    fn an_encoder_s_prompt_is_refused() {
        let source = Source::new(br#"{"architectures": ["BertForSequenceClassification"]}"#).unwrap();
        let said = |declared: Option<&DeclaredPrompt>, config: &str| {
            let cross_encoder_config = Some(config.as_bytes().to_vec());
            let files = PromptFiles { cross_encoder_config, ..PromptFiles::default() };
            refuse(declared, &files, &source).map_err(|Fault { file, reason }| format!("{file}: {reason}"))
        };
        assert_eq!(said(None, r#"{"default_prompt_name": null, "prompts": {"query": "query: "}}"#), Ok(()));
        assert_eq!(said(None, r#"{"default_prompt_name": "query", "prompts": {"query": ""}}"#), Ok(()));
        let error =
            said(None, r#"{"default_prompt_name": "query", "prompts": {"query": "query: "}}"#).unwrap_err();
        let expected = "config_sentence_transformers.json: default_prompt_name: `query: ` before each query is not served";
        assert!(error.starts_with(expected), "{error}");
        let error = said(declared(r#""qwen3-reranker""#).as_ref(), "{}").unwrap_err();
        assert_eq!(error, "podium.json: prompt: BertForSequenceClassification has none; a decoder has one");
    }
}
