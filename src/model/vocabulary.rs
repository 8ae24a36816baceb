//! `tokenizer.json` for a directory that has BERT's `vocab.txt` alone, as `transformers` converts it
//! (`convert_slow_tokenizer.BertConverter`).

use serde::Deserialize;
use serde_json::{Map, Value, json};

/// Tokenizers that read `vocab.txt` as BERT's does.
const CLASSES: [&str; 4] =
    ["BertTokenizer", "BertTokenizerFast", "DistilBertTokenizer", "DistilBertTokenizerFast"];

/// `tokenizer_config.json` as far as it matters here; the defaults are `BertTokenizer`'s.
#[derive(Deserialize)]
#[serde(default)]
struct Raw {
    tokenizer_class: Option<String>,
    do_lower_case: bool,
    do_basic_tokenize: bool,
    tokenize_chinese_chars: bool,
    strip_accents: Option<bool>,
    unk_token: Special,
    cls_token: Special,
    sep_token: Special,
    pad_token: Option<Special>,
    mask_token: Option<Special>,
}

/// A special token: its text, or an object that holds it.
#[derive(Clone, Deserialize)]
#[serde(untagged)]
enum Special {
    Text(String),
    Object { content: String },
}

impl Special {
    fn text(&self) -> &str {
        match self {
            Self::Text(text) | Self::Object { content: text } => text,
        }
    }
}

impl Default for Raw {
    fn default() -> Self {
        let special = |text: &str| Special::Text(text.to_owned());
        Self {
            tokenizer_class: None,
            do_lower_case: true,
            do_basic_tokenize: true,
            tokenize_chinese_chars: true,
            strip_accents: None,
            unk_token: special("[UNK]"),
            cls_token: special("[CLS]"),
            sep_token: special("[SEP]"),
            pad_token: Some(special("[PAD]")),
            mask_token: Some(special("[MASK]")),
        }
    }
}

/// The content of `tokenizer.json` for the content of a `vocab.txt` and, where there is one, of a
/// `tokenizer_config.json`.
///
/// # Errors
/// Says what is wrong with which file.
pub(super) fn tokenizer_json(vocab: &[u8], config: Option<&[u8]>) -> Result<Vec<u8>, String> {
    let raw: Raw = match config {
        Some(bytes) => {
            serde_json::from_slice(bytes).map_err(|error| format!("tokenizer_config.json: {error}"))?
        }
        None => Raw::default(),
    };
    if let Some(class) = raw.tokenizer_class.as_deref().filter(|class| !CLASSES.contains(class)) {
        return Err(format!("tokenizer_config.json: tokenizer_class `{class}` has no vocab.txt of BERT's"));
    }
    if !raw.do_basic_tokenize {
        return Err("tokenizer_config.json: do_basic_tokenize: false is not read".to_owned());
    }
    let text = std::str::from_utf8(vocab)
        .map_err(|error| format!("vocab.txt is not UTF-8 at byte {}", error.valid_up_to()))?;
    // A token's id is its line; of two equal lines the last one counts.
    let line = |(id, token): (usize, &str)| (token.to_owned(), json!(id));
    let vocab: Map<String, Value> = text.lines().enumerate().map(line).collect();
    let id = |special: &Special| {
        let text = special.text();
        let id = vocab.get(text).cloned().ok_or_else(|| format!("vocab.txt has no special token `{text}`"));
        id.map(|id| (text.to_owned(), id))
    };
    let (unk, cls, sep) = (id(&raw.unk_token)?, id(&raw.cls_token)?, id(&raw.sep_token)?);
    let others = [raw.pad_token, raw.mask_token].into_iter().flatten().filter_map(|token| id(&token).ok());
    let mut added: Vec<(String, Value)> =
        [unk.clone(), cls.clone(), sep.clone()].into_iter().chain(others).collect();
    added.sort_by_key(|(_, id)| id.as_u64());
    let added = added.into_iter().map(|(content, id)| {
        json!({
            "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true,
        })
    });
    let tokenizer = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added.collect::<Vec<_>>(),
        "normalizer": {
            "type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": raw.tokenize_chinese_chars,
            "strip_accents": raw.strip_accents, "lowercase": raw.do_lower_case,
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {"type": "BertProcessing", "sep": sep, "cls": cls},
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": true},
        "model": {
            "type": "WordPiece", "unk_token": unk.0, "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100, "vocab": vocab,
        },
    });
    Ok(serde_json::to_vec(&tokenizer).expect("a map with strings as keys is JSON"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::token::{Cut, Fit, Packed, Pair, Tokenizer};

    const VOCAB: &[u8] = b"[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nberlin\nBerlin\n##s\ncafe\n\xe4\xb8\xad\nx\n";

    fn ids(config: Option<&str>, text: &str) -> Vec<u32> {
        let json = tokenizer_json(VOCAB, config.map(str::as_bytes)).unwrap();
        Tokenizer::parse(&json).unwrap().encode(text).unwrap().to_vec()
    }

    #[test]
    fn words_are_read_as_the_configuration_says() {
        // By default in lower case and without accents; ids are lines.
        assert_eq!(ids(None, "Berlins Caf\u{e9} \u{4e2d}x"), [5, 7, 8, 9, 10]);
        assert_eq!(ids(Some("{}"), "Berlins y"), [5, 7, 1]);
        assert_eq!(ids(Some(r#"{"do_lower_case": false}"#), "Berlins Caf\u{e9}"), [6, 7, 1]);
        let kept = r#"{"do_lower_case": true, "strip_accents": false}"#;
        assert_eq!(ids(Some(kept), "Berlins Caf\u{e9}"), [5, 7, 1]);
        assert_eq!(ids(Some(r#"{"tokenize_chinese_chars": false}"#), "\u{4e2d}x"), [1]);
        assert_eq!(ids(None, "a [SEP] x"), [1, 3, 10]);
    }

    #[test]
    fn a_pair_has_bert_s_special_tokens_and_types() {
        let config = br#"{"cls_token": {"content": "[MASK]"}, "sep_token": "[PAD]", "pad_token": null}"#;
        let tokenizer = Tokenizer::parse(&tokenizer_json(VOCAB, Some(config)).unwrap()).unwrap();
        assert!(tokenizer.has_own_wordpiece());
        let encode = |text: &str| tokenizer.encode(text).unwrap();
        let fit = Fit::new(16, Cut::Nothing);
        let pair = Pair::fit(encode("berlin"), encode("x x"), tokenizer.template(), &fit).unwrap();
        let mut batch = Packed::default();
        pair.push_into(&mut batch, tokenizer.template());
        assert_eq!(batch.ids(), [4, 5, 0, 10, 10, 0]);
        assert_eq!(batch.types(), [0, 0, 0, 1, 1, 1]);
    }

    #[test]
    fn what_is_no_vocabulary_of_bert_s_is_an_error_that_names_the_file() {
        let error = |vocab: &[u8], config: &str| tokenizer_json(vocab, Some(config.as_bytes())).unwrap_err();
        let rows: [(&[u8], &str, &str); 6] = [
            (VOCAB, "[", "tokenizer_config.json: EOF"),
            (
                VOCAB,
                r#"{"tokenizer_class": "XLMRobertaTokenizer"}"#,
                "tokenizer_config.json: tokenizer_class `XLMRobertaTokenizer` has no vocab.txt",
            ),
            (VOCAB, r#"{"do_basic_tokenize": false}"#, "tokenizer_config.json: do_basic_tokenize"),
            (VOCAB, r#"{"cls_token": "<s>"}"#, "vocab.txt has no special token `<s>`"),
            (b"[UNK]\n[CLS]\n", "{}", "vocab.txt has no special token `[SEP]`"),
            (b"a\n\xff\n", "{}", "vocab.txt is not UTF-8 at byte 2"),
        ];
        for (vocab, config, expected) in rows {
            let error = error(vocab, config);
            assert!(error.starts_with(expected), "{error}");
        }
    }
}
