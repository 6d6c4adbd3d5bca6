//! Tensors: contiguous, row-major, channels last (B, H, W, C), reference counted.
//!
//! A [`Tensor`] is a cheap handle: cloning it shares the memory. Operations live in [`crate::ops`] and are
//! also reachable as methods (`x.add(&y)`, `x.sum(&[1])`, ...); they never write into their inputs.

mod elem;
mod shape;

pub use elem::{DType, Elem, Float, Plain};
pub(crate) use elem::{with_arithmetic, with_float, with_plain};
pub use shape::{MAX_RANK, Shape};

use crate::autograd::{Recipe, Var, record};
use crate::cpu::buffer::Buffer;
use crate::cuda::{Device, Gpu, Held, Output};
use crate::error::Result;
use std::borrow::Cow;
use std::sync::Arc;

/// Where the elements are. Without device features the second variant has no values and takes no room.
#[derive(Clone)]
enum Storage {
    Host(Arc<Buffer>),
    Device(Held),
}

/// An n-dimensional array, possibly recorded for differentiation.
#[derive(Clone)]
pub struct Tensor {
    data: Storage,
    shape: Shape,
    dtype: DType,
    var: Option<Var>,
}

impl Tensor {
    /// A tensor of `shape` with a copy of `values`.
    ///
    /// # Panics
    /// When the number of values is not the number of elements of `shape`.
    #[track_caller]
    pub fn from_slice<T: Plain>(values: &[T], shape: impl Into<Shape>) -> Self {
        let mut out = NewTensor::<T>::new(shape.into());
        assert_eq!(
            values.len(),
            out.as_mut().len(),
            "from_slice: {} values for shape {:?}",
            values.len(),
            out.shape
        );
        out.as_mut().copy_from_slice(values);
        out.finish().placed()
    }

    /// A tensor whose elements are `f(0), f(1), ...` in row-major order.
    pub fn from_fn<T: Plain>(shape: impl Into<Shape>, mut f: impl FnMut(usize) -> T) -> Self {
        let mut out = NewTensor::<T>::new(shape.into());
        out.as_mut().iter_mut().enumerate().for_each(|(i, x)| *x = f(i));
        out.finish().placed()
    }

    /// A tensor filled with `value`, converted to `dtype`.
    pub fn full(value: f64, shape: impl Into<Shape>, dtype: DType) -> Self {
        Place { shape: shape.into(), dtype, gpu: Gpu::current() }.full(value)
    }

    /// A tensor of zeros with this tensor's shape, dtype and device.
    pub fn zeros_like(&self) -> Self {
        Place::of(self).full(0.0)
    }

    /// A tensor of ones with this tensor's shape, dtype and device.
    pub fn ones_like(&self) -> Self {
        Place::of(self).full(1.0)
    }

    /// A tensor of zeros.
    pub fn zeros(shape: impl Into<Shape>, dtype: DType) -> Self {
        Self::full(0.0, shape, dtype)
    }

    /// A tensor of ones.
    pub fn ones(shape: impl Into<Shape>, dtype: DType) -> Self {
        Self::full(1.0, shape, dtype)
    }

    /// A scalar (shape `[]`).
    pub fn scalar(value: f64, dtype: DType) -> Self {
        Self::full(value, [], dtype)
    }

    /// Sizes, outermost first.
    pub fn shape(&self) -> &[usize] {
        self.shape.as_slice()
    }

    /// Sizes as an array: `let [b, h, w, c] = x.dims();` names and checks the rank in one line.
    ///
    /// # Panics
    /// When the rank is not `N`.
    #[track_caller]
    pub fn dims<const N: usize>(&self) -> [usize; N] {
        match self.shape().try_into() {
            Ok(dims) => dims,
            Err(_) => panic!("expected a tensor of rank {N}, got shape {:?}", self.shape),
        }
    }

    /// Number of dimensions.
    pub fn rank(&self) -> usize {
        self.shape().len()
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.shape.len()
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The device that holds the elements.
    pub fn device(&self) -> Device {
        self.gpu().map_or(Device::Cpu, Gpu::device)
    }

    pub(crate) fn gpu(&self) -> Option<Gpu> {
        self.held().map(Held::gpu)
    }

    pub(crate) fn held(&self) -> Option<&Held> {
        match &self.data {
            Storage::Host(_) => None,
            Storage::Device(held) => Some(held),
        }
    }

    pub(crate) fn on_device(held: Held, shape: Shape, dtype: DType) -> Self {
        Self { data: Storage::Device(held), shape, dtype, var: None }
    }

    /// The same values on `device`, recorded.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Device`] when the device cannot be opened.
    pub fn to(&self, device: Device) -> Result<Self> {
        let (from, to) = (self.gpu(), Gpu::open(device)?);
        if self.device() == device {
            return Ok(self.clone());
        }
        let [y] = record(Recipe::primitive("to"), &[self], [self.moved(to)], move |b| {
            vec![Some(b.grad(0).moved(from))]
        });
        Ok(y)
    }

    /// A copy in the memory of `to`, unrecorded.
    pub(crate) fn moved(&self, to: Option<Gpu>) -> Self {
        let bytes = self.bytes();
        let data = match to {
            Some(gpu) => Storage::Device(gpu.upload(&bytes)),
            None => {
                let mut data = Buffer::uninit(bytes.len());
                data.as_mut().copy_from_slice(&bytes);
                Storage::Host(Arc::new(data))
            }
        };
        Self { data, var: None, ..*self }
    }

    /// The same values in the host's memory, unrecorded: for code that reads elements. Waits for the device that holds
    /// them.
    pub fn on_host(&self) -> Self {
        if self.gpu().is_some() { self.moved(None) } else { self.detach() }
    }

    /// On the device of `other`, unrecorded.
    pub(crate) fn beside(self, other: &Tensor) -> Self {
        if self.device() == other.device() { self } else { self.moved(other.gpu()) }
    }

    /// On the device that this thread makes new tensors on (see [`Device::run`]).
    pub(crate) fn placed(self) -> Self {
        match Gpu::current() {
            Some(gpu) => self.moved(Some(gpu)),
            None => self,
        }
    }

    /// The bytes, brought to the host where they are not.
    fn bytes(&self) -> Cow<'_, [u8]> {
        match &self.data {
            Storage::Host(buffer) => Cow::Borrowed((**buffer).as_ref()),
            Storage::Device(held) => Cow::Owned(held.download()),
        }
    }

    #[track_caller]
    fn host(&self, op: &str) -> &Buffer {
        match &self.data {
            Storage::Host(buffer) => buffer,
            Storage::Device(held) => {
                panic!("{op}: the tensor is on {}; `to(Device::Cpu)` brings it here", held.gpu().device())
            }
        }
    }

    /// The elements in row-major order.
    ///
    /// # Panics
    /// When `T` is not the tensor's dtype, or the tensor is not on the CPU.
    #[track_caller]
    pub fn as_slice<T: Plain>(&self) -> &[T] {
        assert_eq!(T::DTYPE, self.dtype, "as_slice: the tensor is {:?}", self.dtype);
        bytemuck::cast_slice(self.host("as_slice").as_ref())
    }

    /// The elements as raw little-endian bytes.
    ///
    /// # Panics
    /// When the tensor is not on the CPU.
    #[track_caller]
    pub fn as_bytes(&self) -> &[u8] {
        self.host("as_bytes").as_ref()
    }

    /// A tensor from raw native-endian bytes.
    ///
    /// # Panics
    /// When the byte length is not that of `shape` and `dtype`.
    #[track_caller]
    pub fn from_bytes(bytes: &[u8], shape: impl Into<Shape>, dtype: DType) -> Self {
        let shape = shape.into();
        assert_eq!(
            bytes.len(),
            shape.len() * dtype.size(),
            "from_bytes: {} bytes for {shape:?} of {dtype:?}",
            bytes.len()
        );
        let mut data = Buffer::uninit(bytes.len());
        data.as_mut().copy_from_slice(bytes);
        Self { data: Storage::Host(Arc::new(data)), shape, dtype, var: None }.placed()
    }

    /// All elements converted to `f64`; waits for the device that holds them.
    pub fn to_f64_vec(&self) -> Vec<f64> {
        let bytes = self.bytes();
        with_plain!(self.dtype, T => bytemuck::pod_collect_to_vec::<u8, T>(&bytes).into_iter().map(T::to_f64).collect())
    }

    /// The single element as `f64`; waits for the device that holds it.
    ///
    /// # Panics
    /// When the tensor has more or less than one element.
    #[track_caller]
    pub fn item(&self) -> f64 {
        assert_eq!(self.len(), 1, "item: the tensor has shape {:?}", self.shape);
        self.to_f64_vec()[0]
    }

    /// Mutable elements; copies first when the memory is shared. Not recorded: for leaves and buffers only.
    ///
    /// # Panics
    /// When `T` is not the tensor's dtype, or the tensor is not on the CPU.
    #[track_caller]
    pub fn make_mut<T: Plain>(&mut self) -> &mut [T] {
        assert_eq!(T::DTYPE, self.dtype, "make_mut: the tensor is {:?}", self.dtype);
        self.host("make_mut");
        let Storage::Host(data) = &mut self.data else { unreachable!("`host` checked it") };
        if Arc::get_mut(data).is_none() {
            let mut copy = Buffer::uninit((**data).as_ref().len());
            copy.as_mut().copy_from_slice((**data).as_ref());
            *data = Arc::new(copy);
        }
        bytemuck::cast_slice_mut(Arc::get_mut(data).expect("the memory was just made unique").as_mut())
    }

    /// The memory of a device tensor for a kernel that changes it in place; copied first when it is shared.
    ///
    /// # Panics
    /// When the tensor is on the CPU.
    #[track_caller]
    pub(crate) fn change(&mut self) -> Output {
        match &mut self.data {
            Storage::Device(held) => Output::of(held, self.shape, self.dtype),
            Storage::Host(_) => panic!("change: the tensor is on the CPU"),
        }
    }

    /// Copies the elements of `from`, which is alike, if both are on one device and nobody else holds this memory.
    pub(crate) fn overwrite(&self, from: &Tensor) -> bool {
        match (&self.data, &from.data) {
            (Storage::Device(to), Storage::Device(from)) => to.replace(from),
            _ => false,
        }
    }

    /// The same memory under another shape of equal length, unrecorded; the recorded op is `reshape`.
    #[track_caller]
    pub(crate) fn with_shape(&self, shape: Shape) -> Self {
        assert_eq!(shape.len(), self.len(), "reshape: {:?} to {shape:?}", self.shape);
        Self { data: self.data.clone(), shape, dtype: self.dtype, var: None }
    }

    /// The same values, cut off from the recorded graph.
    pub fn detach(&self) -> Self {
        Self { var: None, ..self.clone() }
    }

    /// A leaf with the same values: gradients can be asked with respect to it.
    pub fn requires_grad(&self) -> Self {
        Self { var: Some(Var::leaf()), ..self.clone() }
    }

    /// The place in the recorded graph, if any.
    pub fn var(&self) -> Option<&Var> {
        self.var.as_ref()
    }

    pub(crate) fn with_var(mut self, var: Option<Var>) -> Self {
        self.var = var;
        self
    }
}

/// Shape, dtype and device: what it takes to make another tensor like one.
#[derive(Clone, Copy)]
pub(crate) struct Place {
    pub(crate) shape: Shape,
    pub(crate) dtype: DType,
    gpu: Option<Gpu>,
}

impl Place {
    pub(crate) fn of(t: &Tensor) -> Self {
        Self { shape: t.shape, dtype: t.dtype, gpu: t.gpu() }
    }

    /// The same dtype and device with another shape.
    pub(crate) fn shaped(self, shape: impl Into<Shape>) -> Self {
        Self { shape: shape.into(), ..self }
    }

    /// A tensor filled with `value`.
    pub(crate) fn full(self, value: f64) -> Tensor {
        with_plain!(self.dtype, T => {
            let value = <T as Plain>::from_f64(value);
            match self.gpu {
                Some(gpu) if T::DTYPE != DType::F64 => crate::ops::shape::filled(gpu, value, self.shape),
                place => {
                    let mut out = NewTensor::<T>::new(self.shape);
                    out.as_mut().fill(value);
                    let host = out.finish();
                    if place.is_some() { host.moved(place) } else { host }
                }
            }
        })
    }
}

impl std::fmt::Debug for Tensor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let values = self.to_f64_vec();
        let shown = &values[..values.len().min(8)];
        write!(
            f,
            "Tensor({:?}, {:?}, {shown:?}{})",
            self.dtype,
            self.shape,
            if values.len() > 8 { " ..." } else { "" }
        )
    }
}

/// A tensor being written: the only way in which kernels produce output.
///
/// Its content is arbitrary until written (poisoned under [`crate::cpu::buffer::guard`]).
pub struct NewTensor<T: Plain> {
    data: Buffer,
    shape: Shape,
    elem: std::marker::PhantomData<T>,
}

impl<T: Plain> NewTensor<T> {
    /// Room for a tensor of `shape`.
    pub fn new(shape: impl Into<Shape>) -> Self {
        let shape = shape.into();
        let data = Buffer::uninit(shape.len() * std::mem::size_of::<T>());
        Self { data, shape, elem: std::marker::PhantomData }
    }

    /// Room for a tensor of `shape`, zeroed.
    pub fn zeroed(shape: impl Into<Shape>) -> Self {
        let shape = shape.into();
        let data = Buffer::zeroed(shape.len() * std::mem::size_of::<T>());
        Self { data, shape, elem: std::marker::PhantomData }
    }

    /// The finished tensor, unrecorded.
    pub fn finish(self) -> Tensor {
        Tensor { data: Storage::Host(Arc::new(self.data)), shape: self.shape, dtype: T::DTYPE, var: None }
    }
}

impl<T: Plain> AsMut<[T]> for NewTensor<T> {
    fn as_mut(&mut self) -> &mut [T] {
        bytemuck::cast_slice_mut(self.data.as_mut())
    }
}
