//! Where `auto` is int8: it must be faster than f32 and bf16 on this processor, and keep the model's order, by the model's
//! own `podium.json` or by a sample of pairs.

#![expect(clippy::disallowed_methods, reason = "the test of a sample ends after a time")]

use super::auto::{Choice, Speeds, choose};
use super::size::{map_values, peak_bytes};
use super::{Cpu, CpuModel, Processor, Unsupported};
use crate::backend::sample::{Agreement, sample};
use crate::backend::{Precision, Scorer};
use crate::model::{Model, Plan};
use crate::token::Packed;
use std::time::{Duration, Instant};

/// int8 moves logits more than bf16 does: it must be faster by this share. A whole model gains less than its maps.
const FASTER: f64 = 1.5;
/// The longest test at start, and the fewest lists that it must have scored by then.
const TEST_MAX: Duration = Duration::from_secs(5);
const LISTS_MIN: usize = 4;
/// A model's time, as a multiple of that of its maps alone.
const BESIDE_MAPS: f64 = 1.5;

/// What can be said of int8 before the model runs, in words that follow "int8".
enum Verdict {
    Used(String),
    NotUsed(String),
    Untested,
}

/// A model in int8 if that is faster and keeps its order, else in f32 or bf16, whichever is faster.
pub(super) fn open(model: &Model, threads: usize, available: Option<u64>) -> Result<CpuModel, Unsupported> {
    let plan = &model.plan;
    let processor = Processor::here()[0];
    let float = choose(processor, plan);
    let with = |reason: String, packed: CpuModel| CpuModel { reason: reason.into(), ..packed };
    let in_int8 = |said: String| format!("int8 {said}");
    let in_float = |said: String| format!("{}; int8 {said}", float.reason);
    let verdict = verdict(model, &float, threads);
    if let Verdict::Used(said) = verdict {
        return Ok(with(in_int8(said), CpuModel::within(plan, Precision::Int8, available)?));
    }
    let finer = CpuModel::within(plan, float.precision, available)?;
    if let Verdict::NotUsed(said) = verdict {
        return Ok(with(in_float(said), finer));
    }
    let left =
        available.map(|available| available.saturating_sub(peak_bytes(plan, float.precision, processor)));
    let int8 = match CpuModel::within(plan, Precision::Int8, left) {
        Ok(int8) => int8,
        Err(error) => return Ok(with(in_float(format!("was not tested: {error}")), finer)),
    };
    let started = Instant::now();
    let (keeps_order, said) = test(model, [&finer, &int8], threads, || started.elapsed() < TEST_MAX);
    Ok(if keeps_order { with(in_int8(said), int8) } else { with(in_float(said), finer) })
}

/// Whether a plan is in int8 without a test against f32 or bf16, for which there may be no memory: `podium.json` says that it
/// keeps the order, and it is faster here.
pub(super) fn needs_no_test(plan: &Plan, keeps_order: Option<bool>) -> bool {
    let speeds = choose(Processor::here()[0], plan).speeds;
    keeps_order == Some(true) && speeds.is_some_and(|speeds| speedup(speeds) >= FASTER)
}

fn speedup(speeds: Speeds) -> f64 {
    speeds.int8 / speeds.float
}

/// What can be said without running the model.
fn verdict(model: &Model, choice: &Choice, threads: usize) -> Verdict {
    let Some(speeds) = choice.speeds else {
        return Verdict::NotUsed("has no instructions here".to_owned());
    };
    let speedup = speedup(speeds);
    let faster = format!("has {speedup:.1} times the speed of {}", choice.precision.name());
    if speedup < FASTER {
        return Verdict::NotUsed(format!("{faster}, and is used from {FASTER}"));
    }
    match model.manifest.int8 {
        Some(true) => Verdict::Used(format!("{faster}, and podium.json says that it keeps the order")),
        Some(false) => Verdict::NotUsed("does not keep the order, says podium.json".to_owned()),
        None if duration(model, speeds, threads) > TEST_MAX => Verdict::NotUsed(format!(
            "was not tested, which would take longer than {TEST_MAX:?}; `\"int8\": true` in podium.json admits it"
        )),
        None => Verdict::Untested,
    }
}

/// How long it takes at least to test a model: the fewest lists in both precisions.
fn duration(model: &Model, speeds: Speeds, threads: usize) -> Duration {
    /// Tokens of a pair of the sample without the prompt, and pairs of a list.
    const PAIR_TOKENS: u64 = 40;
    const PAIRS: u64 = 24;
    let prompt = model.prompt.as_ref().map_or(0, |prompt| prompt.text("", "").len() as u64 / 4);
    let tokens = LISTS_MIN as u64 * PAIRS * (PAIR_TOKENS + prompt);
    let products = (tokens * map_values(&model.plan) as u64) as f64 * BESIDE_MAPS;
    Duration::from_secs_f64(products * (1.0 / speeds.float + 1.0 / speeds.int8) / threads.max(1) as f64)
}

/// Whether a model in int8 orders a sample as it does in `float`, and what is to be said of it.
fn test(
    model: &Model,
    [float, int8]: [&CpuModel; 2],
    threads: usize,
    has_time: impl FnMut() -> bool,
) -> (bool, String) {
    let lists = match sample(model) {
        Ok(lists) => lists,
        Err(error) => return (false, format!("was not tested: {error}")),
    };
    let (agreement, tested) = agreement(&lists, [float, int8], threads, has_time);
    if tested < LISTS_MIN {
        let why = format!("was not tested: {tested} lists took longer than {TEST_MAX:?}");
        return (false, format!("{why}; `\"int8\": true` in podium.json admits it"));
    }
    let (share, needed) = (100.0 * agreement.share(), 100.0 * Agreement::MIN);
    let finer = float.precision.name();
    let said =
        format!("keeps {share:.1}% of a sample's pairs in the order of {finer}; {needed:.0}% are needed");
    (agreement.share() >= Agreement::MIN, said)
}

/// How far both order the first lists alike, as many as there is time for; and their number.
fn agreement(
    lists: &[Packed],
    models: [&CpuModel; 2],
    threads: usize,
    mut has_time: impl FnMut() -> bool,
) -> (Agreement, usize) {
    let mut scorers = models.map(|model| Cpu::new(model.clone(), threads));
    let (mut agreement, mut tested) = (Agreement::default(), 0);
    for list in lists {
        let [exact, found] = scorers.each_mut().map(|scorer| {
            let mut logits = vec![f32::NAN; list.len()];
            // Logits that are missing agree with nothing.
            let _ = scorer.score(list, &mut logits);
            logits
        });
        agreement.count(&exact, &found);
        tested += 1;
        if !has_time() {
            break;
        }
    }
    (agreement, tested)
}

/// Whether a model in int8 orders the whole sample as in f32 on this processor. None if its tokenizer or its plan cannot be
/// used.
pub fn keeps_order_in_int8(model: &Model, threads: usize) -> Option<bool> {
    let packed = |precision| CpuModel::new(&model.plan, precision).ok();
    let models = [&packed(Precision::F32)?, &packed(Precision::Int8)?];
    let (agreement, _) = agreement(&sample(model).ok()?, models, threads, || true);
    Some(agreement.share() >= Agreement::MIN)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The bundled model with what `podium.json` says of int8, at these speeds.
    fn said(int8: Option<bool>, speeds: Option<Speeds>) -> Verdict {
        let mut model = Model::bundled();
        model.manifest.int8 = int8;
        verdict(&model, &Choice { precision: Precision::F32, reason: String::new(), speeds }, 1)
    }

    #[test]
    fn int8_is_used_where_it_is_faster_and_keeps_the_order() {
        let fast = Some(Speeds { float: 5e10, int8: 15e10 });
        let alike = Some(Speeds { float: 10e10, int8: 14e10 });
        let slow = Some(Speeds { float: 1e7, int8: 3e7 });
        assert!(matches!(said(None, fast), Verdict::Untested));
        for (int8, speeds, is_used, why) in [
            (Some(true), fast, true, "3.0 times the speed of f32"),
            (Some(true), slow, true, "podium.json says"),
            (Some(true), alike, false, "1.4 times"),
            (Some(false), fast, false, "podium.json"),
            (Some(true), None, false, "no instructions"),
            (None, slow, false, "longer than 5s"),
        ] {
            match said(int8, speeds) {
                Verdict::Used(said) => assert!(is_used && said.contains(why), "{said}"),
                Verdict::NotUsed(said) => assert!(!is_used && said.contains(why), "{said}"),
                Verdict::Untested => panic!("{int8:?} {speeds:?}"),
            }
        }
    }

    #[test]
    fn a_test_needs_enough_lists_and_agreement_with_the_finer_precision() {
        let model = Model::bundled();
        let packed = |model: &Model, precision| CpuModel::new(&model.plan, precision).unwrap();
        let [exact, int8] = [Precision::F32, Precision::Int8].map(|precision| packed(&model, precision));
        let (keeps_order, said) = test(&model, [&exact, &int8], 1, || true);
        assert!(keeps_order && said.contains("in the order of f32; 90% are needed"), "{said}");
        // Of the same kind, with another order: the classifier's sign is the other.
        let mut other = Model::bundled();
        let crate::model::Score::Linear(classifier) = &mut other.plan.head.score else {
            panic!("a classifier")
        };
        classifier.weight.hold();
        classifier.weight.values.iter_mut().for_each(|value| *value = -*value);
        let (keeps_order, said) = test(&model, [&exact, &packed(&other, Precision::Int8)], 1, || true);
        assert!(!keeps_order && said.ends_with("90% are needed"), "{said}");
        let (keeps_order, said) = test(&model, [&exact, &int8], 1, || false);
        assert!(!keeps_order && said.starts_with("was not tested: 1 lists took longer than 5s"), "{said}");
    }
}
