//! Recorded launches as a CUDA graph.

use super::Graph;
use super::driver::{Recent, told};
use super::gate::Gate;
use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys;
use std::sync::Arc;

/// A CUDA graph that can be launched.
pub(super) struct Executable {
    graph: sys::CUgraphExec,
    context: sys::CUcontext,
    stream: sys::CUstream,
    /// The last kernels in it, and where messages about faults look for them.
    kernels: Vec<&'static str>,
    recent: Recent,
    gate: Arc<Gate>,
}

// SAFETY: handles that the driver lets any thread use; each call makes the context current first.
unsafe impl Send for Executable {}
// SAFETY: as above.
unsafe impl Sync for Executable {}

impl Executable {
    /// Ends the capture on `stream`.
    pub(super) fn end(
        context: sys::CUcontext,
        stream: sys::CUstream,
        recent: &Recent,
        gate: &Arc<Gate>,
    ) -> Result<Self, DriverError> {
        // SAFETY: a capture is under way on this stream; the graph is instantiated once and destroyed here.
        let graph = unsafe {
            let graph = result::stream::end_capture(stream)?;
            let executable = result::graph::instantiate(graph, sys::CUgraphInstantiate_flags(0));
            let _ = sys::cuGraphDestroy(graph);
            executable?
        };
        Ok(Self {
            graph,
            context,
            stream,
            kernels: recent.take(),
            recent: recent.clone(),
            gate: gate.clone(),
        })
    }
}

impl Graph for Executable {
    fn launch(&self) -> Result<(), String> {
        let _pass = self.gate.pass();
        // SAFETY: context, stream and graph live; the memory that the graph uses belongs to its recording.
        unsafe {
            result::ctx::set_current(self.context).map_err(told)?;
            sys::cuGraphLaunch(self.graph, self.stream).result().map_err(told)?;
        }
        self.kernels.iter().for_each(|symbol| self.recent.add(symbol));
        Ok(())
    }
}

impl Drop for Executable {
    fn drop(&mut self) {
        // SAFETY: the graph was instantiated by `end`; the driver keeps what is still running.
        let _ = unsafe { sys::cuGraphExecDestroy(self.graph) };
    }
}
