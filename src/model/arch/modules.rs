//! The modular layout of sentence-transformers: `modules.json` lists the modules that follow a transformer, each in a
//! folder of its own.

use super::keys::{GELU_OR_SILU, Keys};
use super::{Answers, Fault};
use crate::model::plan::{Activation, Head, Linear, Norm, Pool, Score};
use serde::Deserialize;
use serde_json::Value;
use std::borrow::Cow;

/// Of `torch.nn.LayerNorm`, which the module has; no file says it.
const LAYER_NORM_EPS: f64 = 1e-5;

/// A module that follows the transformer.
#[derive(Clone, Debug)]
pub(in crate::model) struct Module {
    /// Its folder.
    pub path: String,
    /// The last component of its type.
    pub kind: String,
    /// Its `config.json`.
    pub keys: Keys,
}

impl Module {
    /// Whether it has a file of weights.
    pub fn has_weights(kind: &str) -> bool {
        matches!(kind, "Dense" | "LayerNorm")
    }

    /// An error in its `config.json`.
    fn fault(&self, reason: String) -> Fault {
        Fault { file: format!("{}/config.json", self.path).into(), reason }
    }

    fn is(&self, kind: &str) -> bool {
        self.kind == kind
    }
}

/// An error in `modules.json`.
pub(super) fn fault(reason: String) -> Fault {
    Fault { file: "modules.json".into(), reason }
}

/// The folders and kinds of the modules that follow the transformer, by `modules.json`.
///
/// # Errors
/// Says what is wrong with it.
pub(in crate::model) fn listed(json: &[u8]) -> Result<Vec<(String, String)>, String> {
    #[derive(Deserialize)]
    struct Listed {
        idx: usize,
        path: String,
        r#type: String,
    }
    let mut modules: Vec<Listed> = serde_json::from_slice(json).map_err(|error| error.to_string())?;
    modules.sort_by_key(|module| module.idx);
    let mut modules = modules.into_iter().map(|module| {
        let kind = module.r#type.rsplit('.').next().unwrap_or_default().to_owned();
        (module.path, kind)
    });
    match modules.next() {
        Some((path, kind)) if kind == "Transformer" && path.is_empty() => {}
        Some((path, kind)) => {
            return Err(format!(
                "the first module is {kind} in `{path}`, and must be a Transformer in the directory itself"
            ));
        }
        None => return Err("lists no module".to_owned()),
    }
    let modules: Vec<_> = modules.collect();
    // A path is a folder's name: nothing outside the directory is read.
    let is_plain =
        |path: &str| std::path::Path::new(path).file_name().is_some_and(|name| name.to_str() == Some(path));
    match modules.iter().find(|(path, _)| !is_plain(path)) {
        Some((path, kind)) => Err(format!("{kind}: `{path}` is not a folder's name")),
        None => Ok(modules),
    }
}

/// The head that modules are: Pooling, perhaps Dense with an activation, perhaps LayerNorm, and Dense to one score.
pub(super) fn head(modules: &[Module], hidden: usize) -> Result<Head, Fault> {
    let kinds = || modules.iter().map(|module| module.kind.as_str()).collect::<Vec<_>>().join(", ");
    let not_served = || {
        fault(format!(
            "Transformer, {} is not served; Transformer, Pooling, Dense, LayerNorm, Dense is, the first Dense and \
             LayerNorm at will",
            kinds()
        ))
    };
    let [pooling, middle @ .., last] = modules else { return Err(not_served()) };
    let (dense, norm) = match middle {
        [] => (None, None),
        [dense] if dense.is("Dense") => (Some(dense), None),
        [norm] if norm.is("LayerNorm") => (None, Some(norm)),
        [dense, norm] if dense.is("Dense") && norm.is("LayerNorm") => (Some(dense), Some(norm)),
        _ => return Err(not_served()),
    };
    if !(pooling.is("Pooling") && last.is("Dense")) {
        return Err(not_served());
    }
    let at = pool(&pooling.keys).map_err(|reason| pooling.fault(reason))?;
    let dense =
        dense.map(|module| linear(module, hidden).map_err(|reason| module.fault(reason))).transpose()?;
    let width = dense.as_ref().map_or(hidden, |(linear, _)| linear.outputs());
    let activated = |(linear, activation): (Linear, Option<Activation>)| match activation {
        Some(activation) => Ok((linear, activation)),
        None => {
            Err(middle[0].fault("activation_function: Identity is served in the last Dense only".to_owned()))
        }
    };
    let dense = dense.map(activated).transpose()?;
    let layer_norm = |module: &Module| -> Result<Norm, Fault> {
        let stated = module.keys.size_or("dimension", Some(width)).map_err(|reason| module.fault(reason))?;
        match stated == width {
            true => Ok(Norm::layer(&format!("{}/norm", module.path), width, LAYER_NORM_EPS)),
            false => Err(module.fault(format!("dimension: {stated} is not {width}, what the module reads"))),
        }
    };
    let norm = norm.map(layer_norm).transpose()?;
    let (score, activation) = linear(last, width).map_err(|reason| last.fault(reason))?;
    match (activation, score.outputs()) {
        (None, 1) => Ok(Head { at, dense, norm, score: Score::Linear(score) }),
        (Some(_), _) => {
            Err(last.fault("activation_function: Identity alone is served for a score".to_owned()))
        }
        (None, outputs) => Err(last.fault(format!("out_features: {outputs} is not 1, a score"))),
    }
}

/// The tokens whose logits are the score, with the file that says so.
pub(super) fn answers(modules: &[Module]) -> Result<(Cow<'static, str>, Answers), Fault> {
    let [module] = modules else {
        let kinds: Vec<&str> = modules.iter().map(|module| module.kind.as_str()).collect();
        return Err(fault(format!(
            "Transformer, {} is not served; Transformer, LogitScore is",
            kinds.join(", ")
        )));
    };
    if !module.is("LogitScore") {
        let kind = &module.kind;
        return Err(fault(format!(
            "{kind} is not served after a model that gives the logits of tokens; LogitScore is"
        )));
    }
    let read = |key: &str| module.keys.token(key).map_err(|reason| module.fault(reason));
    let yes = read("true_token_id")?.ok_or_else(|| module.fault("true_token_id is missing".to_owned()))?;
    Ok((format!("{}/config.json", module.path).into(), Answers { yes, no: read("false_token_id")? }))
}

/// What Pooling reads. Earlier releases wrote a switch for each mode.
fn pool(keys: &Keys) -> Result<Pool, String> {
    const SERVED: [(&str, Pool); 3] = [("mean", Pool::Mean), ("cls", Pool::First), ("lasttoken", Pool::Last)];
    match keys.get("pooling_mode") {
        Some(Value::Array(modes)) => {
            match &modes[..] {
                [Value::String(mode)] => {
                    let found = SERVED.into_iter().find(|(word, _)| word == mode);
                    found.map(|(_, pool)| pool).ok_or_else(|| not_served("pooling_mode", mode))
                }
                _ => Err("pooling_mode: several at once are not served; one of cls, mean and lasttoken is"
                    .to_owned()),
            }
        }
        Some(_) => keys.one_of("pooling_mode", &SERVED),
        None => {
            let mut on = Vec::new();
            for mode in [
                "cls_token",
                "mean_tokens",
                "lasttoken",
                "max_tokens",
                "mean_sqrt_len_tokens",
                "weightedmean_tokens",
            ] {
                let key = format!("pooling_mode_{mode}");
                if keys.flag(&key)? {
                    on.push(key);
                }
            }
            match on.iter().map(String::as_str).collect::<Vec<_>>()[..] {
                ["pooling_mode_cls_token"] => Ok(Pool::First),
                [] | ["pooling_mode_mean_tokens"] => Ok(Pool::Mean),
                ["pooling_mode_lasttoken"] => Ok(Pool::Last),
                ref other => {
                    Err(format!("{} is not served; one of cls, mean and lasttoken is", other.join(" with ")))
                }
            }
        }
    }
}

fn not_served(key: &str, value: &str) -> String {
    format!("{key}: `{value}` is not served; mean, cls and lasttoken are")
}

/// A Dense module that reads `width` values, with its activation; none for the identity.
fn linear(module: &Module, width: usize) -> Result<(Linear, Option<Activation>), String> {
    let keys = &module.keys;
    let inputs = keys.size("in_features")?;
    if inputs != width {
        return Err(format!("in_features: {inputs} is not {width}, what the module reads"));
    }
    keys.must_be("use_residual", false, false)?;
    let name = format!("{}/linear", module.path);
    let outputs = keys.size("out_features")?;
    let has_bias = keys.get("bias").is_none() || keys.flag("bias")?;
    let linear =
        if has_bias { Linear::new(&name, outputs, inputs) } else { Linear::unbiased(&name, outputs, inputs) };
    let class = match keys.get("activation_function") {
        None => "Tanh",
        Some(value) => value.as_str().and_then(|path| path.rsplit('.').next()).unwrap_or_default(),
    };
    let activation = match class {
        "Identity" => None,
        "Tanh" => Some(Activation::Tanh),
        "GELU" => Some(GELU_OR_SILU[0].1),
        "SiLU" => Some(Activation::Silu),
        other => {
            return Err(format!(
                "activation_function: `{other}` is not served; GELU, SiLU, Tanh and Identity are"
            ));
        }
    };
    Ok((linear, activation))
}
