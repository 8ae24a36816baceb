//! The report of a load: how it was made, and the results.

use super::figures::RunReport;
use super::sweep::SweepReport;
use super::versus::VersusReport;
use serde::Serialize;

/// A load and its results.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The server.
    pub side: Side,
    /// The second server, measured in turns with the first.
    pub other: Option<Side>,
    /// The source of requests, in words.
    pub requests: String,
    /// The arrival process, in words.
    pub pace: String,
    /// The seed of all random choices.
    pub seed: u64,
    /// The results.
    #[serde(flatten)]
    pub finding: Finding,
}

/// A server and the requests it was sent.
#[derive(Clone, Debug, Serialize)]
pub struct Side {
    /// Its address.
    pub url: String,
    /// Its dialect.
    pub dialect: &'static str,
    /// The model name in requests.
    pub model: Option<String>,
    /// Kinds of requests and their weights.
    pub mix: Vec<(String, f64)>,
}

/// The results of a load.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Finding {
    /// A single run.
    Run(Box<RunReport>),
    /// A search for the highest rate.
    Sweep(SweepReport),
    /// A comparison in turns.
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

    /// A one-line description.
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
    /// The reason why the results should not be used, if there is one.
    pub fn invalid(&self) -> Option<&str> {
        match &self.finding {
            Finding::Run(run) => run.invalid.as_deref(),
            Finding::Sweep(sweep) => sweep.invalid.as_deref(),
            Finding::Versus(versus) => versus.invalid.as_deref(),
        }
    }

    /// The runs of the results. For a sweep: the run at the highest good rate, else the last run.
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
