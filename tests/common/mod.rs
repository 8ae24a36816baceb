//! What several test files share.

#![allow(dead_code, reason = "each test file uses a part of it")]

use podium::backend::Scripted;
use podium::base::{Ns, PerTier, Tier};
use podium::engine::{BooksSetup, Clock, LaneSetup, PrepareLimits, Setup, TierSetup};
use podium::model::Calibration;
use podium::sched::{Limits, TenantConfig};
use podium::token::{Cut, Fit, Packed, Pair, Tokenizer};
use std::path::PathBuf;
use std::sync::Arc;
use tokenizers::models::wordpiece::WordPiece;
use tokenizers::normalizers::BertNormalizer;
use tokenizers::pre_tokenizers::bert::BertPreTokenizer;
use tokenizers::processors::bert::BertProcessing;

/// The data folder: `$PODIUM_DATA`, else `../shared/data`; none, said aloud, where there is neither.
pub fn data() -> Option<PathBuf> {
    let beside = || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../shared/data");
    let place = std::env::var_os("PODIUM_DATA").map_or_else(beside, PathBuf::from);
    if place.is_dir() {
        return Some(place);
    }
    eprintln!("SKIPPED: no data at {}; set PODIUM_DATA", place.display());
    None
}

/// A BERT tokenizer over single letters: each letter of a word is a token.
pub fn letters() -> Arc<Tokenizer> {
    let specials = ["[UNK]", "[CLS]", "[SEP]"].map(str::to_owned).into_iter();
    let words = specials.chain(('a'..='z').map(String::from)).chain(('a'..='z').map(|c| format!("##{c}")));
    let vocab: [(String, u32); 55] = words.zip(0..).collect::<Vec<_>>().try_into().unwrap();
    let model = WordPiece::builder().vocab(vocab).unk_token("[UNK]".to_owned()).build().unwrap();
    let mut letters = tokenizers::Tokenizer::new(model);
    letters.with_normalizer(Some(BertNormalizer::default())).unwrap();
    letters.with_pre_tokenizer(Some(BertPreTokenizer));
    letters.with_post_processor(Some(BertProcessing::new(("[SEP]".into(), 2), ("[CLS]".into(), 1))));
    let file = tempfile::NamedTempFile::new().unwrap();
    letters.save(file.path(), false).unwrap();
    Arc::new(Tokenizer::from_file(file.path()).unwrap())
}

/// An engine of scripted scorers over [`letters`]: a primary of one lane and, if wanted, a fallback.
pub fn setup(primary: Scripted, fallback: Option<Scripted>) -> Setup {
    let tokenizer = letters();
    let tier = |name: &str| TierSetup {
        name: name.into(),
        version: "0123456789ab".into(),
        licence: "Apache-2.0".into(),
        tokenizer: tokenizer.clone(),
        pair_tokens_max: 128,
        device: "cpu".into(),
        calibration: Calibration::default(),
    };
    let lane = |tier: Tier, scorer: Scripted| LaneSetup {
        tier,
        batch_tokens_max: 4_096,
        depth: 2,
        make: Arc::new(move || Ok(Box::new(scorer.clone()))),
    };
    let tiers = PerTier { primary: Some(tier("large")), fallback: fallback.as_ref().map(|_| tier("small")) };
    let mut lanes = vec![lane(Tier::Primary, primary)];
    lanes.extend(fallback.map(|scorer| lane(Tier::Fallback, scorer)));
    Setup {
        clock: Clock::start(),
        tiers,
        lanes,
        tenants: vec![("anonymous".into(), TenantConfig::default())],
        limits: Limits { rest_ns_min: Ns::from_millis(1), ..Limits::default() },
        prepare: PrepareLimits::default(),
        default_budget: None,
        any_model: true,
        books: BooksSetup::default(),
    }
}

/// The logit that a scripted scorer gives a pair.
pub fn logit(query: &str, document: &str) -> f32 {
    let tokenizer = letters();
    let limits = Fit { limit: 128, document_max: None, cut: Cut::DocumentOnly };
    let (query, document) = (tokenizer.encode(query).unwrap(), tokenizer.encode(document).unwrap());
    let mut batch = Packed::default();
    let pair = Pair::fit(query, document, tokenizer.template(), &limits).unwrap();
    pair.push_into(&mut batch, tokenizer.template());
    Scripted::logit(batch.ids())
}
