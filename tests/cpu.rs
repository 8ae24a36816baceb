//! The CPU engine against the reference forward and Python's `transformers`: every precision on every instruction set
//! of this processor, at ragged lengths, large magnitudes, and widths that are no multiple of a vector.

mod common;

use common::{FIXTURES, Kind, bert, fixture, random_batch, random_plan};
use podium::backend::{Cpu, CpuModel, Precision, Processor, ScoreError, Scorer, Unsupported};
use podium::model::{Activation, Bert, Block, Forward, Gelu, Model, Plan, Pool, Reach, Tensor};
use podium::token::Packed;
use proptest::prelude::*;

/// The deviation of a logit of magnitude one in each precision, as measured by `deviation_is_as_stated` on its models.
const PRECISIONS: [(Precision, f32); 3] =
    [(Precision::F32, 2e-5), (Precision::Bf16, 0.05), (Precision::Int8, 0.1)];

fn model(processor: Processor, plan: &Plan, precision: Precision) -> Option<CpuModel> {
    match CpuModel::on(processor, plan, precision) {
        Ok(model) => Some(model),
        Err(_) => {
            assert!(precision == Precision::Bf16 && !processor.has_bf16(), "{processor:?} {precision:?}");
            None
        }
    }
}

fn score(model: &CpuModel, batch: &Packed, threads: usize) -> Vec<f32> {
    let mut logits = vec![f32::NAN; batch.len()];
    Cpu::new(model.clone(), threads).score(batch, &mut logits).unwrap();
    logits
}

fn bits(logits: &[f32]) -> Vec<u32> {
    logits.iter().map(|logit| logit.to_bits()).collect()
}

/// Compares the scores of every instruction set and precision with the reference.
fn hold_to_reference(plan: Plan, seed: u64, batch: &Packed) {
    hold_within(1.0, plan, seed, batch);
}

/// The same with tolerances so many times as large.
fn hold_within(times: f32, plan: Plan, seed: u64, batch: &Packed) {
    let plan = random_plan(plan, seed);
    let exact = Forward::new(&plan).unwrap().logits(batch).unwrap();
    for processor in Processor::here() {
        for (precision, tolerance) in PRECISIONS {
            let Some(model) = model(processor, &plan, precision) else { continue };
            for (found, exact) in score(&model, batch, 1).into_iter().zip(&exact) {
                let error = (found - exact).abs() / exact.abs().max(1.0);
                assert!(
                    error < times * tolerance,
                    "{processor:?} {precision:?} seed {seed}: {found} and {exact}"
                );
            }
        }
    }
}

#[test]
fn every_machine_has_the_plain_ways_and_says_which_others_ran() {
    let here = Processor::here();
    eprintln!("instruction sets that these tests run: {here:?}");
    assert!(here.ends_with(&[Processor::Portable, Processor::Emulated]));
}

#[test]
fn lengths_from_one_to_the_limit_score_as_in_the_reference() {
    let lengths = [1, 2, 31, 32, 33, 127, 128, 129, 200, 511, 512];
    hold_to_reference(bert(2, 128, 2, 512).plan(), 1, &random_batch(&lengths, 1));
    hold_to_reference(bert(1, 64, 2, 128).plan(), 2, &random_batch(&lengths, 2));
}

#[test]
fn widths_that_fill_no_vector_score_as_in_the_reference() {
    // TinyBERT's hidden size 312 with 12 heads of 26, and more uneven shapes.
    let rows = [(312, 12, 1200), (24, 3, 50), (33, 1, 7), (96, 1, 100)];
    for (seed, (hidden, heads, intermediate)) in rows.into_iter().enumerate() {
        hold_to_reference(
            bert(2, hidden, heads, intermediate).plan(),
            seed as u64,
            &random_batch(&[1, 5, 40, 70], 3),
        );
    }
}

#[test]
fn every_kind_of_layer_and_head_scores_as_in_the_reference() {
    let lengths = [1, 2, 9, 31, 32, 33, 64, 65, 129, 300];
    for kind in Kind::ALL {
        for (seed, (layers, sizes)) in
            [(4, [64, 2, 32, 96]), (2, [48, 4, 24, 80]), (3, [40, 2, 64, 33])].into_iter().enumerate()
        {
            eprintln!("{kind:?}, {layers} layers, {sizes:?}");
            // The logit of a decoder is a difference, and its states are not normed between layers.
            let times = if kind == Kind::Qwen3 { 3.0 } else { 1.0 };
            hold_within(times, kind.plan(layers, sizes), seed as u64, &random_batch(&lengths, 7));
        }
    }
}

#[test]
fn an_absorbed_layer_scores_as_in_the_reference_whatever_stands_around_it() {
    let mut plain = bert(2, 64, 4, 96).plan();
    (plain.embed.types, plain.embed.positions) = (None, None);
    let mut gated = Kind::Gte.plan(3, [48, 2, 24, 80]);
    gated.blocks[2].attention.rope = None;
    gated.head.dense = None;
    for plan in [plain, gated] {
        hold_to_reference(plan, 3, &random_batch(&[1, 2, 33, 129, 300], 7));
    }
}

#[test]
fn every_architecture_scores_as_in_transformers() {
    for name in FIXTURES {
        let (_, plan, batch, logits) = fixture(name);
        for processor in Processor::here() {
            let model = model(processor, &plan, Precision::F32).unwrap();
            for (found, logit) in score(&model, &batch, 2).into_iter().zip(&logits) {
                assert!((found - logit).abs() < 1e-4, "{name}, {processor:?}: {found} and {logit}");
            }
        }
    }
}

#[test]
fn a_file_that_is_overwritten_in_place_is_not_packed() {
    let place = common::small_model();
    let path = place.path().join("model.safetensors");
    let opened = Model::open(place.path()).unwrap();
    assert!(CpuModel::new(&opened.plan, Precision::F32).is_ok());
    let mut bytes = std::fs::read(&path).unwrap();
    *bytes.last_mut().unwrap() ^= 0x80;
    let before = std::fs::metadata(&path).unwrap().modified().unwrap();
    std::fs::write(&path, bytes).unwrap();
    // Whatever a clock's tick is.
    let file = std::fs::File::options().write(true).open(&path).unwrap();
    file.set_modified(before + std::time::Duration::from_secs(1)).unwrap();
    let expected = format!("{} was overwritten while the model was loaded", path.display());
    let error = CpuModel::new(&opened.plan, Precision::F32).err().unwrap().to_string();
    assert!(error.starts_with(&expected), "{error}");
    let error = Forward::new(&opened.plan).err().unwrap().to_string();
    assert!(error.starts_with(&expected), "{error}");
    assert!(CpuModel::new(&Model::open(place.path()).unwrap().plan, Precision::F32).is_ok());
}

#[test]
fn large_magnitudes_stay_finite_and_right() {
    let mut plan = random_plan(bert(2, 64, 2, 128).plan(), 5);
    plan.embed.words.values.iter_mut().for_each(|value| *value *= 1e4);
    for Block { attention, feed_forward, .. } in &mut plan.blocks {
        let (query, up) = (&mut attention.query.weight.values, &mut feed_forward.up.weight.values);
        query.iter_mut().chain(up).for_each(|value| *value *= 30.0);
    }
    let batch = random_batch(&[1, 20, 77], 5);
    let exact = Forward::new(&plan).unwrap().logits(&batch).unwrap();
    for processor in Processor::here() {
        for (precision, _) in PRECISIONS {
            let Some(model) = model(processor, &plan, precision) else { continue };
            let found = score(&model, &batch, 1);
            assert!(found.iter().all(|logit| logit.is_finite()), "{processor:?} {precision:?}: {found:?}");
            if precision == Precision::F32 {
                let error = |(found, exact): (&f32, &f32)| (found - exact).abs();
                assert!(found.iter().zip(&exact).map(error).all(|error| error < 1e-3), "{found:?} {exact:?}");
            }
        }
    }
}

#[test]
fn a_model_that_cannot_fit_is_refused_with_both_numbers() {
    let plan = random_plan(bert(2, 128, 2, 512).plan(), 6);
    let largest = plan.tensors().into_iter().map(Tensor::count).max().unwrap();
    let least = 4 * plan.parameters() as u64;
    let needed = |precision: Precision| match CpuModel::within(&plan, precision, Some(1)).err() {
        Some(Unsupported::Memory { needed, available: 1 }) => needed,
        other => panic!("{other:?}"),
    };
    let in_f32 = needed(Precision::F32);
    assert!((least..=least + 4 * largest as u64).contains(&in_f32), "{in_f32} {least}");
    assert!(needed(Precision::Int8) < in_f32);
    assert!(CpuModel::within(&plan, Precision::F32, Some(in_f32)).is_ok());
    let error = CpuModel::within(&plan, Precision::F32, Some(in_f32 - 1)).err().unwrap().to_string();
    let gigabytes = format!("{:.2} GB", in_f32 as f64 / 1e9);
    assert!(error.starts_with(&format!("the model takes about {gigabytes} of memory, and ")), "{error}");
    // Nothing is read before: the file of this one is cut short.
    let place = common::small_model();
    let opened = Model::open(place.path()).unwrap();
    let weights = std::fs::OpenOptions::new().write(true).open(place.path().join("model.safetensors"));
    weights.unwrap().set_len(9).unwrap();
    let refused = CpuModel::within(&opened.plan, Precision::F32, Some(1)).err();
    assert!(matches!(refused, Some(Unsupported::Memory { .. })), "{refused:?}");
}

#[test]
fn auto_is_a_float_unless_int8_is_faster_and_keeps_the_order() {
    let mut model = Model::bundled();
    for says in [Some(false), Some(true), None] {
        model.manifest.int8 = says;
        let packed = CpuModel::open(&model, Precision::Auto, 1, None).unwrap();
        let reason = packed.reason();
        assert!(reason.contains("int8 "), "{reason}");
        assert!(says != Some(false) || packed.dtype() != "int8", "{reason}");
        assert_eq!(packed.dtype() == "int8", reason.starts_with("int8 "), "{reason}");
        let float = CpuModel::open(&model, Precision::Float, 1, None).unwrap();
        assert!(["float32", "bfloat16"].contains(&float.dtype()) && !float.reason().contains("int8"));
    }
    let refused = CpuModel::open(&model, Precision::Auto, 1, Some(1)).err();
    assert!(matches!(refused, Some(Unsupported::Memory { .. })), "{refused:?}");
}

#[test]
fn auto_is_refused_before_weights_are_read_where_it_would_be_after() {
    let mut model = Model::bundled();
    let least = |precision: Precision| match CpuModel::within(&model.plan, precision, Some(1)).err() {
        Some(Unsupported::Memory { needed, .. }) => needed,
        other => panic!("{other:?}"),
    };
    let [float, int8] = [Precision::Float, Precision::Int8].map(least);
    assert!(int8 < float);
    for says in [None, Some(false), Some(true)] {
        model.manifest.int8 = says;
        for available in [int8 - 1, int8, float - 1, float] {
            let checked = CpuModel::check(&model.plan, Precision::Auto, says, Some(available));
            let opened = CpuModel::open(&model, Precision::Auto, 1, Some(available));
            assert_eq!(checked.as_ref().err(), opened.as_ref().err(), "{says:?} {available}");
            assert!(says == Some(true) || checked.is_ok() == (available >= float), "{says:?} {available}");
        }
    }
}

#[test]
fn a_batch_of_another_model_is_an_error() {
    let model = CpuModel::new(&random_plan(bert(1, 32, 1, 32).plan(), 6), Precision::Auto).unwrap();
    let mut scorer = Cpu::new(model, 1);
    for (token, length) in [(30_522, 1), (5, 513)] {
        let mut batch = Packed::default();
        batch.push((0..length).map(|_| (token, 0)));
        assert!(matches!(scorer.score(&batch, &mut [0.0]), Err(ScoreError::Failed(_))));
    }
    assert_eq!(scorer.score(&Packed::default(), &mut []), Ok(()));
}

/// Models whose layers are causal, with and without all that a prefix needs to be shared; and whether it is.
fn causal_plans() -> Vec<(&'static str, Plan, bool)> {
    let causal = |mut plan: Plan, at: Pool| {
        plan.blocks.iter_mut().for_each(|block| block.attention.reach = Reach::Causal);
        plan.head.at = at;
        plan
    };
    let sizes = [64, 4, 32, 96];
    let mut mixed = Kind::Qwen3.plan(3, sizes);
    mixed.blocks[1].attention.reach = Reach::Window(9);
    vec![
        ("a decoder", Kind::Qwen3.plan(3, sizes), true),
        ("a decoder of one layer with narrow heads", Kind::Qwen3.plan(1, [40, 2, 24, 33]), true),
        ("norms of the output", causal(Kind::Gte.plan(2, sizes), Pool::Last), true),
        ("learned positions and token types", causal(bert(2, 64, 2, 96).plan(), Pool::Last), true),
        ("the mean", causal(Kind::ModernBert(Pool::Mean).plan(3, sizes), Pool::Mean), false),
        ("the first token", causal(Kind::Qwen3.plan(2, sizes), Pool::First), false),
        ("a window too", mixed, false),
    ]
}

/// Requests of several documents each, whose pairs begin alike: with the template, with the query, with a whole pair.
fn requests(seed: u64) -> Vec<Packed> {
    let tokens = random_batch(&[40, 16, 50, 3, 20, 90, 33, 64, 9, 1], seed);
    let part = |number: usize| {
        let part = tokens.starts()[number] as usize..tokens.starts()[number + 1] as usize;
        tokens.ids()[part.clone()].iter().copied().zip(tokens.types()[part].iter().copied())
    };
    let batch = |pairs: &[&[usize]]| {
        let mut batch = Packed::default();
        pairs.iter().for_each(|pair| batch.push(pair.iter().flat_map(|&number| part(number))));
        batch
    };
    vec![
        batch(&[&[0, 1, 2, 9], &[0, 1, 3, 9], &[0, 1, 4, 9], &[0, 4, 1], &[0, 4, 5, 1], &[0, 4, 6]]),
        // A whole pair like another one, and one that begins another one.
        batch(&[&[0, 1, 4, 9], &[0, 1, 4, 9], &[0, 1, 4, 9, 5], &[0, 1], &[0, 1], &[0], &[0]]),
        // Nothing or one token in common; a pair of one token; a prefix longer than a chunk.
        batch(&[&[2], &[9, 3], &[9, 4], &[9], &[9], &[7, 6, 5, 2, 3], &[7, 6, 5, 2, 4], &[7, 6, 5, 9]]),
    ]
}

#[test]
fn pairs_that_share_a_prefix_score_as_in_the_reference() {
    for (name, plan, is_shared) in causal_plans() {
        let model = CpuModel::new(&random_plan(plan.clone(), 11), Precision::F32).unwrap();
        assert_eq!(model.shares_prefixes(), is_shared, "{name}");
        for (number, batch) in requests(11).iter().enumerate() {
            eprintln!("{name}, batch {number}");
            hold_within(3.0, plan.clone(), 11, batch);
        }
    }
    let plan = random_plan(Kind::ModernBert(Pool::First).plan(2, [64, 4, 32, 96]), 1);
    assert!(!CpuModel::new(&plan, Precision::F32).unwrap().shares_prefixes());
}

#[test]
fn a_score_does_not_depend_on_what_is_shared() {
    let batches = requests(12);
    for (name, plan, _) in causal_plans().into_iter().filter(|(_, _, is_shared)| *is_shared) {
        let plan = random_plan(plan, 12);
        for processor in Processor::here() {
            for (precision, _) in PRECISIONS {
                let Some(model) = model(processor, &plan, precision) else { continue };
                let alone: Vec<Vec<u32>> = batches
                    .iter()
                    .map(|batch| singles(batch).iter().map(|one| bits(&score(&model, one, 1))[0]).collect())
                    .collect();
                // The second time a batch's prefixes are known, and those of another one between the two.
                for (threads, order) in [(1, &[0, 0, 2][..]), (3, &[0, 1, 0, 2, 1, 2])] {
                    let mut scorer = Cpu::new(model.clone(), threads);
                    for &number in order {
                        let mut logits = vec![f32::NAN; batches[number].len()];
                        scorer.score(&batches[number], &mut logits).unwrap();
                        assert_eq!(
                            bits(&logits),
                            alone[number],
                            "{name}, {processor:?} {precision:?}, {threads}"
                        );
                    }
                }
            }
        }
    }
}

/// Each sequence as a batch of its own.
fn singles(batch: &Packed) -> Vec<Packed> {
    let tokens = batch.starts().windows(2).map(|bounds| bounds[0] as usize..bounds[1] as usize);
    let single = |tokens: std::ops::Range<usize>| {
        let mut single = Packed::default();
        single.push(std::iter::zip(batch.ids()[tokens.clone()].to_vec(), batch.types()[tokens].to_vec()));
        single
    };
    tokens.map(single).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8))]

    #[test]
    fn a_score_depends_neither_on_neighbours_nor_on_threads(
        lengths in prop::collection::vec(1usize..150, 1..20), seed in 0u64..1000, tanh: bool, kind in 0..2 * Kind::ALL.len(),
    ) {
        let activation = if tanh { Activation::Gelu(Gelu::Tanh) } else { Activation::Gelu(Gelu::Erf) };
        let plan = match Kind::ALL.get(kind) {
            Some(kind) => kind.plan(3, [64, 4, 32, 96]),
            None => Bert { activation, ..bert(2, 64, 2, 96) }.plan(),
        };
        let (plan, batch) = (random_plan(plan, seed), random_batch(&lengths, seed));
        for processor in Processor::here() {
            for (precision, _) in PRECISIONS {
                let Some(model) = model(processor, &plan, precision) else { continue };
                let together = bits(&score(&model, &batch, 1));
                prop_assert_eq!(&bits(&score(&model, &batch, 3)), &together);
                for (alone, together) in singles(&batch).iter().zip(&together) {
                    prop_assert_eq!(bits(&score(&model, alone, 1))[0], *together);
                }
            }
        }
    }
}
