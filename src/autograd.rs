//! Reverse-mode differentiation, define by run.
//!
//! An op runs at once; if one of its inputs is recorded it calls [`record`] with its outputs and a closure
//! that turns output gradients into input gradients, capturing only what that closure needs. Node numbers
//! grow with time, so descending numbers are a valid order for the backward pass. Gradients live in what
//! [`grad`] and [`backward`] return, never in the tensors.
//!
//! Gradients of primitives are written in primitives, so `grad(.., create_graph = true)` can be
//! differentiated again, to any order. Fused ops have a hand-derived first-order gradient; inside
//! [`higher_order`] they run as their composite of primitives instead.

use crate::ambient;
use crate::ops;
use crate::tensor::{Place, Tensor};
use std::collections::{BinaryHeap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

type BackwardFn = Box<dyn Fn(&Back) -> Vec<Option<Tensor>> + Send + Sync>;

static NEXT_ID: AtomicU64 = AtomicU64::new(1);

struct Node {
    id: u64,
    op: &'static str,
    fused: bool,
    inputs: Vec<Option<Var>>,
    outputs: Vec<Place>,
    /// Unrecorded handles to the outputs that the backward closure declared it needs.
    saved: Mutex<Vec<Tensor>>,
    backward: Mutex<Option<BackwardFn>>,
}

/// A tensor's place in the recorded graph: one output of one node.
#[derive(Clone)]
pub struct Var {
    node: Arc<Node>,
    output: usize,
}

impl Var {
    /// A new leaf.
    pub(crate) fn leaf() -> Self {
        Self { node: Arc::new(Node::new("leaf", false, vec![], vec![])), output: 0 }
    }

    /// A number that identifies this place for the life of the process.
    pub fn id(&self) -> (u64, usize) {
        (self.node.id, self.output)
    }

    /// Name of the op that produced it.
    pub fn op(&self) -> &'static str {
        self.node.op
    }
}

impl Node {
    fn new(op: &'static str, fused: bool, inputs: Vec<Option<Var>>, outputs: Vec<Place>) -> Self {
        Self {
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            op,
            fused,
            inputs,
            outputs,
            saved: Mutex::new(Vec::new()),
            backward: Mutex::new(None),
        }
    }
}

/// Long chains must not be dropped by recursion: unlink them one node at a time.
impl Drop for Node {
    fn drop(&mut self) {
        fn unlink(node: &mut Node, todo: &mut Vec<Arc<Node>>) {
            todo.extend(node.inputs.drain(..).flatten().map(|v| v.node));
        }
        let mut todo = Vec::new();
        unlink(self, &mut todo);
        // The closure's captured tensors hold further references to the same parents, which `todo` keeps
        // alive, so dropping it here cannot recurse.
        drop(self.backward.get_mut().unwrap_or_else(|e| e.into_inner()).take());
        while let Some(node) = todo.pop() {
            if let Some(mut node) = Arc::into_inner(node) {
                unlink(&mut node, &mut todo);
                drop(node.backward.get_mut().unwrap_or_else(|e| e.into_inner()).take());
            }
        }
    }
}

/// What a backward closure sees: the gradients of the outputs and the outputs it asked to keep.
pub struct Back<'a> {
    node: &'a Node,
    grads: Vec<Option<Tensor>>,
    outputs: Vec<Tensor>,
}

impl Back<'_> {
    /// The gradient of output `i`; zeros when nothing depends on that output.
    pub fn grad(&self, i: usize) -> Tensor {
        self.grads[i].clone().unwrap_or_else(|| self.node.outputs[i].full(0.0))
    }

    /// The gradient of output `i`, if anything depends on it.
    pub fn grad_opt(&self, i: usize) -> Option<&Tensor> {
        self.grads[i].as_ref()
    }

    /// Output `i`; only for ops recorded with `keep_outputs`.
    pub fn output(&self, i: usize) -> &Tensor {
        &self.outputs[i]
    }

    /// Whether the gradient of input `i` is wanted; `None` may be returned for it otherwise.
    pub fn needs(&self, i: usize) -> bool {
        self.node.inputs[i].is_some()
    }
}

/// How an op is recorded.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Recipe {
    /// Name of the op, for messages.
    pub op: &'static str,
    /// Whether the backward closure is more than primitives (so its result cannot be differentiated again).
    pub fused: bool,
    /// Whether the backward closure reads the outputs.
    pub keep_outputs: bool,
}

impl Recipe {
    /// A primitive: its gradient is written in primitives.
    pub const fn primitive(op: &'static str) -> Self {
        Self { op, fused: false, keep_outputs: false }
    }

    /// A fused op: its gradient is hand-derived and of first order.
    pub const fn fused(op: &'static str) -> Self {
        Self { op, fused: true, keep_outputs: false }
    }

    /// The backward closure reads the outputs through [`Back::output`].
    pub const fn keeping_outputs(self) -> Self {
        Self { keep_outputs: true, ..self }
    }
}

/// Whether an op on `inputs` has to be recorded.
pub fn is_recording(inputs: &[&Tensor]) -> bool {
    ambient::now().recording && inputs.iter().any(|t| t.var().is_some())
}

/// Records an op that has run: `backward` returns one optional gradient per input.
///
/// Returns the outputs, attached to the graph when recording is on and an input is recorded.
pub fn record<const N: usize>(
    recipe: Recipe,
    inputs: &[&Tensor],
    outputs: [Tensor; N],
    backward: impl Fn(&Back) -> Vec<Option<Tensor>> + Send + Sync + 'static,
) -> [Tensor; N] {
    if !is_recording(inputs) {
        return outputs;
    }
    let vars = inputs.iter().map(|t| t.var().cloned()).collect();
    let kinds = outputs.iter().map(Place::of).collect();
    let node = Node::new(recipe.op, recipe.fused, vars, kinds);
    if recipe.keep_outputs {
        *node.saved.lock().unwrap_or_else(|e| e.into_inner()) = outputs.iter().map(Tensor::detach).collect();
    }
    *node.backward.lock().unwrap_or_else(|e| e.into_inner()) = Some(Box::new(backward));
    let node = Arc::new(node);
    let mut output = 0;
    outputs.map(|t| {
        let var = Var { node: node.clone(), output };
        output += 1;
        t.with_var(Some(var))
    })
}

/// Runs `f` without recording.
pub fn no_grad<R>(f: impl FnOnce() -> R) -> R {
    ambient::with(|settings| settings.recording = false, f)
}

/// Runs `f` with recording on, whatever the surroundings; for ops that rebuild their forward pass in backward.
pub fn enable_grad<R>(f: impl FnOnce() -> R) -> R {
    ambient::with(|settings| settings.recording = true, f)
}

/// Runs `f` with every fused op replaced by its composite, so that gradients can be differentiated again.
pub fn higher_order<R>(f: impl FnOnce() -> R) -> R {
    ambient::with(|settings| settings.higher_order = true, f)
}

/// Whether fused ops should run as their composites now.
pub fn in_higher_order() -> bool {
    ambient::now().higher_order
}

/// Gradients of Σ <outputs, cotangents> with respect to `wrt`; `None` where nothing depends on it.
///
/// The graph is kept. With `create_graph` the gradients are recorded themselves.
///
/// # Panics
/// When a cotangent's shape differs from its output's, or when `create_graph` meets a fused op that ran
/// outside [`higher_order`].
#[track_caller]
pub fn grad(
    outputs: &[&Tensor],
    cotangents: &[&Tensor],
    wrt: &[&Tensor],
    create_graph: bool,
) -> Vec<Option<Tensor>> {
    if create_graph {
        enable_grad(|| traverse(outputs, cotangents, wrt, create_graph, false))
    } else {
        no_grad(|| traverse(outputs, cotangents, wrt, create_graph, false))
    }
}

/// Gradients of the scalar `loss` with respect to `wrt`, zeros where nothing depends on it.
///
/// Consumes the recorded graph, freeing each activation as soon as it has been used.
///
/// # Panics
/// When `loss` has more than one element.
#[track_caller]
pub fn backward(loss: Tensor, wrt: &[&Tensor]) -> Vec<Tensor> {
    assert_eq!(loss.len(), 1, "backward: the loss has shape {:?}, expected one element", loss.shape());
    let one = loss.ones_like();
    let grads = no_grad(|| traverse(&[&loss], &[&one], wrt, false, true));
    grads.into_iter().zip(wrt).map(|(g, w)| g.unwrap_or_else(|| w.zeros_like())).collect()
}

#[track_caller]
fn traverse(
    outputs: &[&Tensor],
    cotangents: &[&Tensor],
    wrt: &[&Tensor],
    create_graph: bool,
    consume: bool,
) -> Vec<Option<Tensor>> {
    let mut pending: HashMap<u64, (Arc<Node>, Vec<Option<Tensor>>)> = HashMap::new();
    let mut order = BinaryHeap::new();
    let mut wanted: HashMap<(u64, usize), Option<Tensor>> =
        wrt.iter().filter_map(|t| t.var()).map(|v| (v.id(), None)).collect();

    let send = |var: &Var, gradient: Tensor, pending: &mut HashMap<_, _>, order: &mut BinaryHeap<u64>| {
        let (_, slots) = pending.entry(var.node.id).or_insert_with(|| {
            order.push(var.node.id);
            (var.node.clone(), vec![None; var.node.outputs.len().max(var.output + 1)])
        });
        let slots: &mut Vec<Option<Tensor>> = slots;
        slots[var.output] = Some(match slots[var.output].take() {
            None => gradient,
            Some(sum) => ops::binary::accumulate(sum, gradient),
        });
    };
    for (output, cotangent) in outputs.iter().zip(cotangents) {
        assert_eq!(output.shape(), cotangent.shape(), "grad: output and cotangent differ in shape");
        if let Some(var) = output.var() {
            send(var, (*cotangent).clone(), &mut pending, &mut order);
        }
    }
    while let Some(id) = order.pop() {
        let (node, grads) = pending.remove(&id).expect("every queued node has pending gradients");
        for (i, gradient) in grads.iter().enumerate() {
            if let (Some(slot), Some(gradient)) = (wanted.get_mut(&(id, i)), gradient) {
                *slot = Some(gradient.clone());
            }
        }
        let mut guard = node.backward.lock().unwrap_or_else(|e| e.into_inner());
        let taken;
        let backward = if consume {
            taken = guard.take();
            taken.as_ref()
        } else {
            guard.as_ref()
        };
        let Some(backward) = backward else {
            assert!(node.inputs.is_empty(), "backward: the graph of {} was already consumed", node.op);
            continue;
        };
        assert!(
            !(create_graph && node.fused),
            "grad: {} is fused and has a first-order gradient only; run its forward inside higher_order(|| ...)",
            node.op
        );
        let mut saved = node.saved.lock().unwrap_or_else(|e| e.into_inner());
        let kept = if consume { std::mem::take(&mut *saved) } else { saved.clone() };
        drop(saved);
        let outputs = kept
            .into_iter()
            .enumerate()
            .map(
                |(i, t)| {
                    if create_graph { t.with_var(Some(Var { node: node.clone(), output: i })) } else { t }
                },
            )
            .collect();
        let input_grads = {
            let back = Back { node: &node, grads, outputs };
            backward(&back)
        };
        assert_eq!(input_grads.len(), node.inputs.len(), "{}: one gradient per input", node.op);
        for (var, gradient) in node.inputs.iter().zip(input_grads) {
            if let (Some(var), Some(gradient)) = (var, gradient) {
                if let Some(place) = var.node.outputs.get(var.output) {
                    assert_eq!(
                        (gradient.shape(), gradient.dtype()),
                        (place.shape.as_slice(), place.dtype),
                        "{}: gradient and input differ in shape or dtype",
                        node.op
                    );
                }
                send(var, gradient, &mut pending, &mut order);
            }
        }
        drop(guard);
    }
    wrt.iter().map(|t| t.var().and_then(|v| wanted.get(&v.id()).cloned().flatten())).collect()
}
