//! Any machine: vectors as arrays of eight, which the compiler maps to whatever the target has.

use super::kernel::{Dot, Lanes, kernels};
use crate::tensor::Float;
use std::marker::PhantomData;

/// Eight lanes of `T`.
pub(super) struct Array<T>(PhantomData<T>);

impl<T: Float> Lanes for Array<T> {
    type Acc = T;
    type V = [T; 8];
    const LANES: usize = 8;
    #[inline(always)]
    unsafe fn splat(x: T) -> [T; 8] {
        [x; 8]
    }
    #[inline(always)]
    unsafe fn load(p: *const T, n: usize) -> [T; 8] {
        let mut v = [T::from_f64(0.0); 8];
        for i in 0..n {
            // SAFETY: the caller vouches for `n` elements.
            v[i] = unsafe { *p.add(i) };
        }
        v
    }
    #[inline(always)]
    unsafe fn store(p: *mut T, n: usize, v: [T; 8]) {
        for i in 0..n {
            // SAFETY: the caller vouches for `n` elements.
            unsafe { *p.add(i) = v[i] };
        }
    }
    #[inline(always)]
    unsafe fn add(mut a: [T; 8], b: [T; 8]) -> [T; 8] {
        for i in 0..8 {
            a[i] += b[i];
        }
        a
    }
    #[inline(always)]
    unsafe fn mul(mut a: [T; 8], b: [T; 8]) -> [T; 8] {
        for i in 0..8 {
            a[i] = a[i] * b[i];
        }
        a
    }
    #[inline(always)]
    unsafe fn gate(mut v: [T; 8], g: [T; 8]) -> [T; 8] {
        for i in 0..8 {
            v[i] = if g[i] <= T::from_f64(0.0) { T::from_f64(0.0) } else { v[i] };
        }
        v
    }
}

impl<T: Float> Dot for Array<T> {
    type L = Array<T>;
    type Word = T;
    type W = [T; 8];
    #[inline(always)]
    unsafe fn words(p: *const T) -> [T; 8] {
        // SAFETY: the caller vouches for 8 elements.
        unsafe { p.cast::<[T; 8]>().read() }
    }
    #[inline(always)]
    unsafe fn spread(p: *const T) -> [T; 8] {
        // SAFETY: the caller vouches for one element.
        [unsafe { *p }; 8]
    }
    #[inline(always)]
    unsafe fn dot(mut acc: [T; 8], a: [T; 8], b: [T; 8]) -> [T; 8] {
        // Two roundings: a fused multiply-add would be a library call where the target has no instruction.
        for i in 0..8 {
            acc[i] += a[i] * b[i];
        }
        acc
    }
}

kernels!(KERNELS_F32, Array<f32>, [4 1] [2 1] [1]);
kernels!(KERNELS_F64, Array<f64>, [4 1] [2 1] [1]);
