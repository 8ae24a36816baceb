// All kernels, in the order in which they need each other; build.rs compiles this one file.
#include "base.cuh"
#include "layer_norm.cu"
#include "embed.cu"
#include "gelu.cu"
#include "attention.cu"
#include "first_token.cu"
#include "head.cu"
