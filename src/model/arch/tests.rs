//! What the configurations of the fixtures' models may not say, and what they may say otherwise.

use super::{Answers, Fault, Keys, Module, Source};
use crate::model::plan::{Activation, Gelu, Plan, Pool, Reach, Rope, Score};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/encoders").join(name)
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn keys(value: &Value) -> Keys {
    Keys::parse(value.to_string().as_bytes()).unwrap()
}

/// The plan of a fixture with changes in its `config.json`; decoders answer with tokens 9 and 2.
fn describe(name: &str, changes: &[(&str, Value)]) -> Result<Plan, String> {
    let mut config = json(&fixture(name).join("config.json"));
    for (key, value) in changes {
        config[*key] = value.clone();
    }
    let source = Source::new(config.to_string().as_bytes()).unwrap();
    said(&Source { answers: Some(Answers { yes: 9, no: Some(2) }), ..source })
}

fn said(source: &Source) -> Result<Plan, String> {
    source.describe().map_err(|Fault { file, reason }| format!("{file}: {reason}"))
}

#[test]
fn what_is_not_served_is_named_with_what_is() {
    let rope = |kind: &str| json!({"full_attention": {"rope_theta": 1e4, "rope_type": kind}});
    let rows = [
        (
            "modernbert_cls",
            "hidden_activation",
            json!("relu"),
            "hidden_activation: `relu` is not served; gelu, gelu_new, gelu_pytorch_tanh and silu are",
        ),
        (
            "modernbert_cls",
            "classifier_activation",
            json!("tanh"),
            "classifier_activation: `tanh` is not served",
        ),
        (
            "modernbert_cls",
            "classifier_pooling",
            json!("max"),
            "classifier_pooling: `max` is not served; cls and mean are",
        ),
        ("modernbert_cls", "norm_bias", json!("yes"), "norm_bias: \"yes\" is neither true nor false"),
        ("modernbert_cls", "norm_eps", json!(0), "norm_eps: 0 is not a number above 0"),
        (
            "modernbert_cls",
            "layer_types",
            json!(["full_attention"]),
            "layer_types: lists 1 layers, and num_hidden_layers is 5",
        ),
        (
            "modernbert_cls",
            "layer_types",
            json!(["chunked"]),
            "layer_types: `chunked` is not served; full_attention and sliding_attention are",
        ),
        (
            "modernbert_cls",
            "rope_parameters",
            rope("yarn"),
            "rope_parameters.full_attention.rope_type: `yarn` is not served; default is",
        ),
        ("modernbert_cls", "rope_parameters", json!(7), "rope_parameters: 7 is not an object"),
        ("modernbert_cls", "local_attention", json!(-1), "local_attention: -1 is not a whole number above 0"),
        (
            "modernbert_cls",
            "num_hidden_layers",
            json!(0),
            "num_hidden_layers: 0 is not a whole number above 0",
        ),
        (
            "modernbert_cls",
            "num_attention_heads",
            json!(5),
            "num_attention_heads: 5 does not divide hidden_size 32",
        ),
        ("modernbert_cls", "num_attention_heads", json!(32), "the size of a head is odd"),
        ("modernbert_cls", "hidden_size", Value::Null, "hidden_size is missing"),
        (
            "modernbert_cls",
            "max_position_embeddings",
            json!(1e30),
            "max_position_embeddings: 1e+30 is not a whole number",
        ),
        (
            "modernbert_cls",
            "id2label",
            json!({"0": "no", "1": "yes"}),
            "id2label: the model has 2 labels (no, yes)",
        ),
        ("modernbert_cls", "vocab_size", json!("many"), "vocab_size: \"many\" is not a whole number above 0"),
        (
            "ettin",
            "hidden_size",
            json!(32),
            "architectures: `ModernBertModel` gives no scores, and there is no modules.json",
        ),
        ("new", "pack_qkv", json!(false), "pack_qkv: false is not served; true is"),
        ("new", "logn_attention_scale", json!(true), "logn_attention_scale: true is not served; false is"),
        (
            "new",
            "position_embedding_type",
            json!("absolute"),
            "position_embedding_type: `absolute` is not served; rope is",
        ),
        (
            "new",
            "layer_norm_type",
            json!("rms_norm"),
            "layer_norm_type: `rms_norm` is not served; layer_norm is",
        ),
        ("new", "hidden_act", json!("relu"), "hidden_act: `relu` is not served"),
        (
            "new",
            "rope_scaling",
            json!({"type": "linear", "factor": 2}),
            "rope_scaling.type: `linear` is not served; ntk is",
        ),
        (
            "new",
            "rope_scaling",
            json!({"type": "ntk", "factor": 0}),
            "rope_scaling.factor: 0 is not a number above 0",
        ),
        (
            "new",
            "rope_scaling",
            json!({"type": "ntk", "factor": 8, "mixed_b": 0.5}),
            "rope_scaling.mixed_b is not served",
        ),
        ("qwen3", "use_sliding_window", json!(true), "use_sliding_window: true is not served; false is"),
        (
            "qwen3",
            "layer_types",
            json!(["full_attention", "sliding_attention"]),
            "layer_types: `sliding_attention` is not served; full_attention is",
        ),
        ("qwen3", "hidden_act", json!("gelu"), "hidden_act: `gelu` is not served; silu is"),
        (
            "qwen3",
            "rope_parameters",
            json!({"rope_type": "yarn", "factor": 4}),
            "rope_parameters.rope_type: `yarn` is not served; default is",
        ),
        (
            "qwen3_untied",
            "rope_scaling",
            json!({"type": "linear", "factor": 4}),
            "rope_scaling.type: `linear` is not served; default is",
        ),
        (
            "qwen3",
            "num_key_value_heads",
            json!(3),
            "num_key_value_heads: 3 does not divide num_attention_heads 4",
        ),
        ("qwen3", "head_dim", json!(7), "head_dim: 7 is odd"),
        ("qwen3", "vocab_size", json!(9), "token 9 is not among the model's 9"),
        (
            "qwen3_classifier",
            "id2label",
            json!({"0": "no", "1": "yes"}),
            "id2label: the model has 2 labels (no, yes)",
        ),
        ("qwen2", "num_attention_heads", json!(5), "num_attention_heads: 5 does not divide hidden_size 32"),
        (
            "deberta_v2",
            "relative_attention",
            json!(false),
            "relative_attention: false is not served; true is",
        ),
        (
            "deberta_v2",
            "position_biased_input",
            json!(true),
            "position_biased_input: true is not served; false is",
        ),
        (
            "deberta_v2",
            "pos_att_type",
            json!("c2p"),
            "pos_att_type: \"c2p\" is not served; c2p and p2c together are",
        ),
        ("deberta_v2", "conv_kernel_size", json!(3), "conv_kernel_size: a convolution is not served; 0 is"),
        ("deberta_v2", "position_buckets", json!(1), "position_buckets: 1 is not served; 2 and more are"),
        ("deberta_v2", "embedding_size", json!(16), "embedding_size: another than hidden_size is not served"),
        (
            "deberta_v2",
            "architectures",
            json!(["T5ForSequenceClassification"]),
            "architectures: `T5ForSequenceClassification` is not served; these are: Bert",
        ),
    ];
    for (name, key, value, expected) in rows {
        let error = describe(name, &[(key, value)]).unwrap_err();
        let file = if expected.starts_with("token 9") { "podium.json" } else { "config.json" };
        assert!(error.starts_with(&format!("{file}: {expected}")), "{name}: {error}");
    }
}

#[test]
fn both_ways_to_write_layers_and_rotations_are_the_same_plan() {
    let older = [
        ("rope_parameters", Value::Null),
        ("layer_types", Value::Null),
        ("global_attn_every_n_layers", json!(3)),
        ("global_rope_theta", json!(160_000.0)),
        ("local_rope_theta", json!(10_000.0)),
    ];
    assert_eq!(describe("modernbert_cls", &older), describe("modernbert_cls", &[]));
    let older =
        [("rope_parameters", Value::Null), ("rope_theta", json!(1_000_000)), ("rope_scaling", Value::Null)];
    assert_eq!(describe("qwen3", &older), describe("qwen3", &[]));
}

#[test]
fn what_a_file_may_leave_out_is_what_transformers_takes() {
    let plan = describe(
        "modernbert_cls",
        &[
            ("rope_parameters", Value::Null),
            ("layer_types", Value::Null),
            ("local_attention", Value::Null),
            ("hidden_activation", Value::Null),
            ("norm_eps", Value::Null),
        ],
    )
    .unwrap();
    let attention = |layer: usize| &plan.blocks[layer].attention;
    assert_eq!((attention(3).rope, attention(3).reach), (Some(Rope::new(160_000.0)), Reach::All));
    assert_eq!((attention(4).rope, attention(4).reach), (Some(Rope::new(10_000.0)), Reach::Window(64)));
    assert_eq!(plan.blocks[0].feed_forward.activation, Activation::Gelu(Gelu::Erf));
    assert_eq!(plan.embed.norm.unwrap().eps, 1e-5);
    assert!(describe("new", &[("type_vocab_size", json!(0))]).unwrap().embed.types.is_none());
}

/// Ettin's modules, with a change in the configuration of one.
fn modules(change: Option<(usize, &str, Value)>) -> Vec<Module> {
    let kinds =
        [("1_Pooling", "Pooling"), ("2_Dense", "Dense"), ("3_LayerNorm", "LayerNorm"), ("4_Dense", "Dense")];
    let mut modules: Vec<Module> = Vec::new();
    for (place, (path, kind)) in kinds.into_iter().enumerate() {
        let mut config = json(&fixture("ettin").join(path).join("config.json"));
        if let Some((_, key, value)) = change.as_ref().filter(|(changed, _, _)| *changed == place) {
            config[*key] = value.clone();
        }
        modules.push(Module { path: path.to_owned(), kind: kind.to_owned(), keys: keys(&config) });
    }
    modules
}

fn with_modules(name: &str, modules: Vec<Module>) -> Result<Plan, String> {
    let config = std::fs::read(fixture(name).join("config.json")).unwrap();
    said(&Source { modules, ..Source::new(&config).unwrap() })
}

#[test]
fn modules_that_are_not_served_are_named_with_what_is() {
    let rows = [
        (
            0,
            "pooling_mode",
            json!("max"),
            "1_Pooling/config.json: pooling_mode: `max` is not served; mean, cls and lasttoken are",
        ),
        (
            0,
            "pooling_mode",
            json!(["cls", "max"]),
            "1_Pooling/config.json: pooling_mode: several at once are not served",
        ),
        (
            1,
            "in_features",
            json!(31),
            "2_Dense/config.json: in_features: 31 is not 32, what the module reads",
        ),
        (1, "use_residual", json!(true), "2_Dense/config.json: use_residual: true is not served; false is"),
        (
            1,
            "activation_function",
            json!("torch.nn.ReLU"),
            "2_Dense/config.json: activation_function: `ReLU` is not served; GELU, SiLU, Tanh and Identity are",
        ),
        (
            1,
            "activation_function",
            json!("torch.nn.Identity"),
            "2_Dense/config.json: activation_function: Identity is served in the last Dense only",
        ),
        (
            1,
            "out_features",
            json!(16),
            "3_LayerNorm/config.json: dimension: 32 is not 16, what the module reads",
        ),
        (
            3,
            "activation_function",
            json!("torch.nn.Sigmoid"),
            "4_Dense/config.json: activation_function: `Sigmoid` is not served",
        ),
        (
            3,
            "activation_function",
            json!("torch.nn.Tanh"),
            "4_Dense/config.json: activation_function: Identity alone is served for a score",
        ),
        (3, "out_features", json!(2), "4_Dense/config.json: out_features: 2 is not 1, a score"),
    ];
    for (place, key, value, expected) in rows {
        let error = with_modules("ettin", modules(Some((place, key, value)))).unwrap_err();
        assert!(error.starts_with(expected), "{error}");
    }
    let mut others = modules(None);
    others[2].kind = "Dropout".to_owned();
    let error = with_modules("ettin", others).unwrap_err();
    assert!(
        error.starts_with("modules.json: Transformer, Pooling, Dense, Dropout, Dense is not served"),
        "{error}"
    );
    let error = with_modules("modernbert_cls", modules(None)).unwrap_err();
    let expected =
        "modules.json: Pooling follows ModernBertForSequenceClassification, which gives scores already";
    assert_eq!(error, expected);
    let error = with_modules("qwen3", modules(None)).unwrap_err();
    assert!(
        error.starts_with("modules.json: Transformer, Pooling, Dense, LayerNorm, Dense is not served"),
        "{error}"
    );
}

#[test]
fn both_ways_to_write_a_pooling_are_the_same() {
    let mut older = modules(None);
    for (on, expected) in [
        (&[][..], Ok(Pool::Mean)),
        (&["cls_token"], Ok(Pool::First)),
        (&["mean_tokens"], Ok(Pool::Mean)),
        (&["lasttoken"], Ok(Pool::Last)),
        (&["cls_token", "max_tokens"], Err("1_Pooling/config.json: pooling_mode_cls_token with pooling_mode_max_tokens is not served; one of cls, mean and lasttoken is".to_owned())),
    ] {
        let config: serde_json::Map<String, Value> =
            on.iter().map(|mode| (format!("pooling_mode_{mode}"), json!(true))).collect();
        older[0].keys = keys(&Value::Object(config));
        assert_eq!(with_modules("ettin", older.clone()).map(|plan| plan.head.at), expected);
    }
}

#[test]
fn a_decoder_s_score_is_that_of_the_tokens_that_its_module_names() {
    let score = |config: Value| {
        let module = Module { path: "1_LogitScore".into(), kind: "LogitScore".into(), keys: keys(&config) };
        with_modules("qwen3", vec![module]).map(|plan| plan.head.score)
    };
    let plan = with_modules("qwen3", vec![]);
    assert!(plan.unwrap_err().contains("no 1_LogitScore says which"));
    let Score::Tokens { yes, no: Some(no) } =
        score(json!({"true_token_id": 9, "false_token_id": 2})).unwrap()
    else {
        panic!()
    };
    assert_eq!((yes.part.unwrap().first, no.part.unwrap().first), (9, 2));
    let alone = score(json!({"true_token_id": 9, "false_token_id": null})).unwrap();
    assert!(matches!(alone, Score::Tokens { no: None, .. }));
    for (config, expected) in [
        (json!({}), "true_token_id is missing"),
        (json!({"true_token_id": -1}), "true_token_id: -1 is not a token id"),
        (json!({"true_token_id": 100}), "token 100 is not among the model's 100"),
    ] {
        assert_eq!(score(config).unwrap_err(), format!("1_LogitScore/config.json: {expected}"));
    }
}

#[test]
fn modules_are_listed_after_the_transformer_in_their_order() {
    let listed = |modules: Value| super::listed(modules.to_string().as_bytes());
    let transformer = json!({"idx": 0, "path": "", "type": "sentence_transformers.models.Transformer"});
    let dense = |path: &str, idx: u32| json!({"idx": idx, "path": path, "type": "a.b.Dense"});
    let found = listed(json!([dense("2_Dense", 2), transformer, dense("1_Dense", 1)])).unwrap();
    assert_eq!(
        found,
        [("1_Dense".to_owned(), "Dense".to_owned()), ("2_Dense".to_owned(), "Dense".to_owned())]
    );
    for (modules, expected) in [
        (json!([]), "lists no module"),
        (json!({}), "invalid type: map"),
        (json!([dense("", 0)]), "the first module is Dense in ``, and must be a Transformer"),
        (json!([transformer, dense("../elsewhere", 1)]), "Dense: `../elsewhere` is not a folder's name"),
        (json!([transformer, dense("", 1)]), "Dense: `` is not a folder's name"),
    ] {
        let error = listed(modules).unwrap_err();
        assert!(error.starts_with(expected), "{error}");
    }
}
