//! A report: how a load was made, and what it found.

use super::figures::RunReport;
use super::sweep::SweepReport;
use super::versus::VersusReport;
use serde::Serialize;

/// What was done, and what came of it.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Who was asked.
    pub side: Side,
    /// Who was asked in turns with it.
    pub other: Option<Side>,
    /// Where requests come from, in words.
    pub requests: String,
    /// How requests came, in words.
    pub pace: String,
    /// Everything random came from it.
    pub seed: u64,
    /// What was found.
    #[serde(flatten)]
    pub finding: Finding,
}

/// A server and what it was asked for.
#[derive(Clone, Debug, Serialize)]
pub struct Side {
    /// Its address.
    pub url: String,
    /// Its dialect.
    pub dialect: &'static str,
    /// The model that requests named.
    pub model: Option<String>,
    /// Kinds of requests and their weights.
    pub mix: Vec<(String, f64)>,
}

/// What was found.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Finding {
    /// By one run.
    Run(Box<RunReport>),
    /// By a search for the highest rate.
    Sweep(SweepReport),
    /// By turns.
    Versus(Box<VersusReport>),
}

impl Side {
    /// Describes a load.
    pub fn of(load: &super::Load) -> Self {
        let target = load.client().target();
        Self {
            url: target.url.clone(),
            dialect: target.dialect.name(),
            model: target.model.clone(),
            mix: load.kinds().iter().map(|kind| (kind.name(), kind.weight)).collect(),
        }
    }

    /// In a line.
    pub fn words(&self) -> String {
        let model = self.model.as_ref().map_or_else(String::new, |model| format!(", model {model}"));
        let mix = match &self.mix[..] {
            [(one, _)] if one == "plain" => String::new(),
            [(one, _)] => format!(", {one}"),
            many => {
                let many = many.iter().map(|(name, weight)| format!("{weight} x {name}"));
                format!(", {}", many.collect::<Vec<_>>().join(" + "))
            }
        };
        format!("{} ({}{model}{mix})", self.url, self.dialect)
    }
}

impl Report {
    /// Why it is not to be used, if so.
    pub fn invalid(&self) -> Option<&str> {
        match &self.finding {
            Finding::Run(run) => run.invalid.as_deref(),
            Finding::Sweep(sweep) => sweep.invalid.as_deref(),
            Finding::Versus(versus) => versus.invalid.as_deref(),
        }
    }

    /// The runs that it holds; in a sweep the highest good rate's, else the last one's.
    pub fn runs(&self) -> Vec<(&'static str, &RunReport)> {
        match &self.finding {
            Finding::Run(run) => vec![("", run)],
            Finding::Sweep(sweep) => {
                let good = sweep.steps.iter().filter(|step| step.good);
                let best = good.max_by(|a, b| a.rate.total_cmp(&b.rate)).or(sweep.steps.last());
                best.map(|step| ("", &step.run)).into_iter().collect()
            }
            Finding::Versus(versus) => vec![("A", &versus.a), ("B", &versus.b)],
        }
    }
}
