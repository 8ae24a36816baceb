//! Matrix products by cublasLt. The plan of each shape is made once and cached.

use super::{DeviceError, Half, Product};
use cudarc::cublaslt::result::{self as lt, CublasError};
use cudarc::cublaslt::sys;
use cudarc::driver::sys::CUstream;
use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::c_void;

/// Workspace of the products; the size that cublasLt's documentation recommends for Hopper.
pub(super) const WORKSPACE_BYTES: usize = 32 << 20;

/// The version of CUDA 13.0. Checked because the loader may find an older library first, which would fail later.
const VERSION_MIN: usize = 130_000;

/// A handle and its plans.
pub(super) struct Blas {
    handle: sys::cublasLtHandle_t,
    /// The key is a product without its addresses.
    plans: RefCell<HashMap<(Half, Product), Plan>>,
}

struct Plan {
    description: sys::cublasLtMatmulDesc_t,
    w: Layout,
    x: Layout,
    y: Layout,
    algorithm: sys::cublasLtMatmulAlgo_t,
}

/// A matrix in cublasLt's column-major order: the transpose of our row-major matrix.
struct Layout(sys::cublasLtMatrixLayout_t);

impl Blas {
    /// Opens cublasLt.
    pub fn new() -> Result<Self, DeviceError> {
        // SAFETY: the call only looks for the library.
        if !unsafe { sys::is_culib_present() } {
            let message = "libcublasLt.so was not found; add its folder to LD_LIBRARY_PATH";
            return Err(DeviceError::Failed(message.to_owned()));
        }
        // SAFETY: the library is there.
        let version = unsafe { sys::cublasLtGetVersion() };
        if version < VERSION_MIN {
            let message = format!(
                "libcublasLt.so has version {version}; at least {VERSION_MIN} is needed (LD_LIBRARY_PATH)"
            );
            return Err(DeviceError::Failed(message));
        }
        Ok(Self { handle: lt::create_handle().map_err(failed)?, plans: RefCell::default() })
    }

    /// Queues a product.
    ///
    /// # Safety
    /// The product must read and write only device memory, and `workspace` must point to [`WORKSPACE_BYTES`] of it.
    pub unsafe fn multiply(
        &self,
        half: Half,
        product: &Product,
        workspace: u64,
        stream: CUstream,
    ) -> Result<(), DeviceError> {
        let [bias, x_scale, w_scale] =
            [product.bias, product.x_scale, product.w_scale].map(|address| u64::from(address != 0));
        let shape = Product { x: 0, w: 0, y: 0, bias, x_scale, w_scale, ..*product };
        let mut plans = self.plans.borrow_mut();
        let plan = match plans.entry((half, shape)) {
            std::collections::hash_map::Entry::Occupied(known) => known.into_mut(),
            std::collections::hash_map::Entry::Vacant(free) => {
                free.insert(Plan::new(self.handle, half, product).map_err(failed)?)
            }
        };
        let (one, zero) = (1.0f32, 0.0f32);
        // SAFETY: the plan's handles live as long as it does; the caller promises the addresses.
        let queued = unsafe {
            plan.set_addresses(product).and_then(|()| {
                lt::matmul(
                    self.handle,
                    plan.description,
                    pointer(&one),
                    pointer(&zero),
                    product.w as *const c_void,
                    plan.w.0,
                    product.x as *const c_void,
                    plan.x.0,
                    product.y as *const c_void,
                    plan.y.0,
                    product.y as *mut c_void,
                    plan.y.0,
                    &raw const plan.algorithm,
                    workspace as *mut c_void,
                    WORKSPACE_BYTES,
                    stream.cast(),
                )
            })
        };
        queued.map_err(failed)
    }
}

impl Drop for Blas {
    fn drop(&mut self) {
        self.plans.borrow_mut().clear();
        // SAFETY: the handle is not used any more. An error here cannot be handled.
        let _ = unsafe { lt::destroy_handle(self.handle) };
    }
}

impl Plan {
    fn new(handle: sys::cublasLtHandle_t, half: Half, product: &Product) -> Result<Self, CublasError> {
        use sys::cublasLtMatmulDescAttributes_t as Attribute;
        let half = match half {
            Half::F16 => sys::cudaDataType_t::CUDA_R_16F,
            Half::Bf16 => sys::cudaDataType_t::CUDA_R_16BF,
        };
        let f32s = sys::cudaDataType_t::CUDA_R_32F;
        let output = if product.is_output_f32 == 1 { f32s } else { half };
        let input = if product.w_scale == 0 { half } else { sys::cudaDataType_t::CUDA_R_8F_E4M3 };
        let Product { rows, outputs, inputs, count, .. } = *product;
        let is_input_major = product.is_input_major == 1;
        let (w_rows, w_columns) = if is_input_major { (outputs, inputs) } else { (inputs, outputs) };
        let mut plan = Self {
            w: Layout::new(input, (w_rows, w_columns), product.w_stride, (count, product.w_step))?,
            x: Layout::new(input, (inputs, rows), product.x_stride, (count, product.x_step))?,
            y: Layout::new(output, (outputs, rows), product.y_stride, (count, product.y_step))?,
            algorithm: sys::cublasLtMatmulAlgo_t { data: [0; 8] },
            description: lt::create_matmul_desc(sys::cublasComputeType_t::CUBLAS_COMPUTE_32F, f32s)?,
        };
        plan.set(Attribute::CUBLASLT_MATMUL_DESC_TRANSA, &i32::from(!is_input_major))?;
        if product.bias != 0 {
            plan.set(
                Attribute::CUBLASLT_MATMUL_DESC_EPILOGUE,
                &sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BIAS,
            )?;
        }
        if product.w_scale != 0 {
            // Accumulates in the tensor cores' reduced precision, as is usual for E4M3 inference.
            plan.set(Attribute::CUBLASLT_MATMUL_DESC_FAST_ACCUM, &1i8)?;
        }
        plan.set_addresses(product)?;
        let preference = lt::create_matmul_pref()?;
        // SAFETY: all handles were just made; the attribute is a 64-bit number.
        let found = unsafe {
            lt::set_matmul_pref_attribute(
                preference,
                sys::cublasLtMatmulPreferenceAttributes_t::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                pointer(&(WORKSPACE_BYTES as u64)),
                size_of::<u64>(),
            )
            .and_then(|()| {
                let (w, x, y) = (plan.w.0, plan.x.0, plan.y.0);
                lt::get_matmul_algo_heuristic(handle, plan.description, w, x, y, y, preference)
            })
        };
        // SAFETY: the preference was made above and is not used any more.
        unsafe { lt::destroy_matmul_pref(preference) }?;
        plan.algorithm = found?.algo;
        Ok(plan)
    }

    /// Sets the addresses of bias and scales, for products that have them.
    fn set_addresses(&self, product: &Product) -> Result<(), CublasError> {
        use sys::cublasLtMatmulDescAttributes_t as Attribute;
        let addresses = [
            (Attribute::CUBLASLT_MATMUL_DESC_BIAS_POINTER, product.bias),
            (Attribute::CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, product.w_scale),
            (Attribute::CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, product.x_scale),
        ];
        addresses
            .iter()
            .filter(|(_, address)| *address != 0)
            .try_for_each(|(name, address)| self.set(*name, address))
    }

    fn set<T>(&self, name: sys::cublasLtMatmulDescAttributes_t, value: &T) -> Result<(), CublasError> {
        // SAFETY: the description is the plan's; it copies the value.
        unsafe { lt::set_matmul_desc_attribute(self.description, name, pointer(value), size_of::<T>()) }
    }
}

impl Drop for Plan {
    fn drop(&mut self) {
        // SAFETY: the description is not used any more.
        let _ = unsafe { lt::destroy_matmul_desc(self.description) };
    }
}

impl Layout {
    fn new(
        dtype: sys::cudaDataType_t,
        (rows, columns): (u64, u64),
        stride: u64,
        (count, step): (u64, u64),
    ) -> Result<Self, CublasError> {
        use sys::cublasLtMatrixLayoutAttribute_t as Attribute;
        let layout = Self(lt::create_matrix_layout(dtype, rows, columns, stride as i64)?);
        if count > 1 {
            layout.set(Attribute::CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &(count as i32))?;
            layout.set(Attribute::CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, &(step as i64))?;
        }
        Ok(layout)
    }

    fn set<T>(&self, name: sys::cublasLtMatrixLayoutAttribute_t, value: &T) -> Result<(), CublasError> {
        // SAFETY: the layout is ours; it copies the value.
        unsafe { lt::set_matrix_layout_attribute(self.0, name, pointer(value), size_of::<T>()) }
    }
}

impl Drop for Layout {
    fn drop(&mut self) {
        // SAFETY: the layout is not used any more.
        let _ = unsafe { lt::destroy_matrix_layout(self.0) };
    }
}

fn pointer<T>(value: &T) -> *const c_void {
    std::ptr::from_ref(value).cast()
}

fn failed(error: CublasError) -> DeviceError {
    match error.0 {
        sys::cublasStatus_t::CUBLAS_STATUS_ALLOC_FAILED => DeviceError::OutOfMemory,
        status => DeviceError::Failed(format!("cublasLt: {status:?}")),
    }
}
