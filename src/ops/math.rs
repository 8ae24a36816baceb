//! 2^x, tanh and the Gaussian error linear unit, by polynomials; each states its error, and a test
//! holds it to that.

use super::Gelu;
use super::simd::Simd;
use std::f32::consts::{FRAC_1_SQRT_2, LOG2_E};

/// 2^x on [-1/2, 1/2], least first: relative error 7.5e-8, with rounding 3e-7 (minimax, degree 5). Kernels use it.
pub const EXP2: [f32; 6] =
    [1.000_000_1, 0.693_146_94, 0.240_221_2, 0.055_507_135, 0.009_675_541, 0.001_327_640_8];
/// The same on [0, 1], for processors with an instruction that subtracts the floor.
pub(super) const EXP2_RISING: [f32; 6] =
    [0.999_999_9, 0.693_153_1, 0.240_153_62, 0.055_826_318, 0.008_989_34, 0.001_877_576_7];
/// The same to a relative error of 8e-5 (degree 3): bf16 rounds to 2e-3.
pub(super) const EXP2_COARSE: [f32; 4] = [0.999_925_2, 0.695_833_5, 0.226_067_16, 0.078_024_52];
/// u (1 - Phi(u)) on [0, 4], least first: absolute error 1.2e-4 there and beyond (minimax, degree 8).
const GELU_COARSE: [f32; 9] = [
    1.112_254_1e-4,
    0.495_219_47,
    -0.365_268_08,
    -0.090_099_856,
    0.183_643_52,
    -0.079_756_3,
    0.016_228_894,
    -0.001_583_196_7,
    5.726_566e-5,
];
const GELU_COARSE_END: f32 = 4.0;
/// Abramowitz and Stegun 7.1.26: erf(x) = 1 - t P(t) exp(-x^2) with t = 1 / (1 + p x), to 1.5e-7.
pub const ERF_P: f32 = 0.327_591_1;
/// Its P, least first.
pub const ERF: [f32; 5] = [0.254_829_6, -0.284_496_74, 1.421_413_7, -1.453_152, 1.061_405_4];

#[inline(always)]
fn polynomial<S: Simd>(simd: S, x: S::V, least_first: &[f32]) -> S::V {
    let (&last, rest) = least_first.split_last().expect("a polynomial has coefficients");
    let mut sum = simd.splat(last);
    for &coefficient in rest.iter().rev() {
        sum = simd.fma(sum, x, simd.splat(coefficient));
    }
    sum
}

/// 2^x for x up to 127, by one of the polynomials on [0, 1]; below -125 what comes out is some number up to 2^-125.
#[inline(always)]
pub(super) fn exp2<S: Simd>(simd: S, x: S::V, least_first: &[f32]) -> S::V {
    let x = if S::SCALES_TO_ZERO { x } else { simd.max(x, simd.splat(-125.0)) };
    simd.scale(polynomial(simd, simd.fraction(x), least_first), x)
}

/// tanh(x) = 1 - 2 / (1 + e^2x), to 3e-7.
#[inline(always)]
pub(super) fn tanh<S: Simd>(simd: S, x: S::V) -> S::V {
    let twice = simd.min(simd.mul(x, simd.splat(2.0 * LOG2_E)), simd.splat(126.0));
    let power = simd.add(exp2(simd, twice, &EXP2_RISING), simd.splat(1.0));
    simd.sub(simd.splat(1.0), simd.div(simd.splat(2.0), power))
}

/// The error form x Phi(x), to 2e-7 max(1, |x|).
#[inline(always)]
pub(super) fn gelu_erf<S: Simd>(simd: S, x: S::V) -> S::V {
    let u = simd.abs(x);
    let t = simd.div(simd.splat(1.0), simd.fma(u, simd.splat(ERF_P * FRAC_1_SQRT_2), simd.splat(1.0)));
    let square = simd.mul(simd.mul(u, u), simd.splat(-0.5 * LOG2_E));
    let tail = simd.mul(simd.mul(polynomial(simd, t, &ERF), t), exp2(simd, square, &EXP2_RISING));
    // max(x, 0) - u (1 - Phi(u)), as Phi(-u) = 1 - Phi(u).
    let half = simd.mul(simd.mul(u, simd.splat(0.5)), tail);
    simd.sub(simd.max(x, simd.splat(0.0)), half)
}

/// The error form to an absolute error of 1.3e-4.
#[inline(always)]
pub(super) fn gelu_erf_coarse<S: Simd>(simd: S, x: S::V) -> S::V {
    let u = simd.min(simd.abs(x), simd.splat(GELU_COARSE_END));
    simd.sub(simd.max(x, simd.splat(0.0)), polynomial(simd, u, &GELU_COARSE))
}

/// The tanh form x / (1 + exp(-2 sqrt(2 / pi) (x + 0.044715 x^3))), to 2e-6 max(1, |x|), or 2e-4 times
/// that by the coarse 2^x.
#[inline(always)]
pub(super) fn gelu_tanh<S: Simd>(simd: S, x: S::V, exp2_least_first: &[f32]) -> S::V {
    const FACTOR: f32 = -2.0 * 0.797_884_6 * LOG2_E;
    let cubic = simd.fma(simd.mul(x, x), simd.splat(0.044_715 * FACTOR), simd.splat(FACTOR));
    let power = exp2(simd, simd.min(simd.mul(cubic, x), simd.splat(126.0)), exp2_least_first);
    simd.div(x, simd.add(power, simd.splat(1.0)))
}

/// x / (1 + e^-x), to 3e-7 max(1, |x|), or 1e-4 times that by the coarse 2^x.
#[inline(always)]
pub(super) fn silu<S: Simd>(simd: S, x: S::V, exp2_least_first: &[f32]) -> S::V {
    let power = exp2(simd, simd.min(simd.mul(x, simd.splat(-LOG2_E)), simd.splat(126.0)), exp2_least_first);
    simd.div(x, simd.add(power, simd.splat(1.0)))
}

/// Either form, in f64.
pub fn gelu_reference(x: f32, gelu: Gelu) -> f32 {
    let x = f64::from(x);
    let gate = match gelu {
        Gelu::Erf => libm::erf(x * std::f64::consts::FRAC_1_SQRT_2),
        Gelu::Tanh => ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3))).tanh(),
    };
    (0.5 * x * (1.0 + gate)) as f32
}

#[cfg(test)]
mod tests {
    use super::super::simd::Kernel;
    use super::super::tests::on_every_processor;
    use super::*;

    /// A function of one value, run on a vector of equal ones.
    struct Apply<F>(f32, F);

    trait Function<S: Simd> {
        fn call(&self, simd: S, x: S::V) -> S::V;
    }

    macro_rules! function {
        ($name:ident, |$simd:ident, $x:ident| $body:expr) => {
            struct $name;
            impl<S: Simd> Function<S> for $name {
                #[inline(always)]
                fn call(&self, $simd: S, $x: S::V) -> S::V {
                    $body
                }
            }
        };
    }
    function!(Exp2, |simd, x| exp2(simd, x, &EXP2_RISING));
    function!(Exp2Coarse, |simd, x| exp2(simd, x, &EXP2_COARSE));
    function!(Tanh, |simd, x| tanh(simd, x));
    function!(GeluErf, |simd, x| gelu_erf(simd, x));
    function!(GeluErfCoarse, |simd, x| gelu_erf_coarse(simd, x));
    function!(GeluTanh, |simd, x| gelu_tanh(simd, x, &EXP2_RISING));
    function!(Silu, |simd, x| silu(simd, x, &EXP2_RISING));
    function!(SiluCoarse, |simd, x| silu(simd, x, &EXP2_COARSE));
    function!(GeluTanhCoarse, |simd, x| gelu_tanh(simd, x, &EXP2_COARSE));

    impl<S: Simd, F: Function<S>> Kernel<S> for Apply<F> {
        type Output = f32;
        #[inline(always)]
        fn run(self, simd: S) -> f32 {
            simd.largest(self.1.call(simd, simd.splat(self.0)))
        }
    }

    /// The arguments at which the functions are tested: dense near zero, and far from it.
    fn places(end: f32) -> impl Iterator<Item = f32> {
        let steps = (-20_000..=20_000).map(move |step| step as f32 / 20_000.0);
        steps.flat_map(move |share| [share * end, share * share * share * end])
    }

    #[test]
    fn powers_of_two_are_as_close_as_stated() {
        on_every_processor!(|simd| {
            for x in places(125.0) {
                let expected = f64::from(x).exp2();
                let error = |found: f32| (f64::from(found) / expected - 1.0).abs();
                let found = simd.launch(Apply(x, Exp2));
                assert!(error(found) < 3e-7, "{x}: {found} is off by {}", error(found));
                assert!(error(simd.launch(Apply(x, Exp2Coarse))) < 8e-5, "{x}");
            }
            assert!(simd.launch(Apply(-1e30, Exp2)) < 1e-37);
        });
    }

    #[test]
    fn activations_are_as_close_as_stated() {
        on_every_processor!(|simd| {
            for x in places(30.0) {
                let error = |found: f32, expected: f32| (found - expected).abs() / x.abs().max(1.0);
                let (erf, tanh_form) = (gelu_reference(x, Gelu::Erf), gelu_reference(x, Gelu::Tanh));
                assert!(error(simd.launch(Apply(x, Tanh)), x.tanh()) < 3e-7, "{x}");
                assert!(error(simd.launch(Apply(x, GeluErf)), erf) < 2e-7, "{x}");
                assert!((simd.launch(Apply(x, GeluErfCoarse)) - erf).abs() < 1.3e-4, "{x}");
                assert!(error(simd.launch(Apply(x, GeluTanh)), tanh_form) < 2e-6, "{x}");
                assert!(error(simd.launch(Apply(x, GeluTanhCoarse)), tanh_form) < 2e-4, "{x}");
                let silu = (f64::from(x) / (1.0 + f64::from(-x).exp())) as f32;
                assert!(error(simd.launch(Apply(x, Silu)), silu) < 3e-7, "{x}");
                assert!(error(simd.launch(Apply(x, SiluCoarse)), silu) < 1e-4, "{x}");
            }
            for x in [1e4, 1e30] {
                assert_eq!(simd.launch(Apply(x, GeluErf)), x);
                assert!(simd.launch(Apply(-x, GeluErf)).abs() < 1e-30);
                assert_eq!(simd.launch(Apply(x, GeluTanh)), x);
            }
        });
    }
}
