// All kernels, each file after those that it uses. build.rs compiles this file.
#include "base.cuh"
#include "layer_norm.cu"
#include "embed.cu"
#include "gelu.cu"
#include "attention.cu"
#include "first_token.cu"
#include "head.cu"
