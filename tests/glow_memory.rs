//! What a training step of Glow holds in memory, with activations stored and rebuilt. In a file of its own: the
//! peak is that of the whole process.

use surprisal::autograd;
use surprisal::bijections::Memory;
use surprisal::cpu::buffer::{live_bytes, peak_bytes, reset_peak};
use surprisal::models::Model;
use surprisal::models::flow::glow::{GLOW, Glow, GlowConfig};
use surprisal::random::Philox;
use surprisal::{DType, Tensor};

/// Peak bytes of log p, its gradient and an update, parameters and gradients included.
fn step(depth: usize, memory: Memory, batch: usize, hidden: usize) -> usize {
    let preset: GlowConfig = toml::from_str(GLOW.presets[0].1).expect("the preset is complete");
    let config = GlowConfig { depth, memory, hidden, ..preset };
    let mut rng = Philox::new(1);
    let before = live_bytes();
    let glow = Glow::new(config, DType::F32, &mut rng).expect("a valid configuration");
    let x = rng.uniform([batch, 28, 28, 1], DType::F32);
    reset_peak();
    let loss = glow.log_prob_continuous(&x).mean_all();
    let leaves: Vec<Tensor> = glow.params().iter().map(|(_, p)| p.get()).collect();
    let grads = autograd::backward(loss, &leaves.iter().collect::<Vec<_>>());
    drop(leaves);
    for ((_, param), grad) in glow.params().iter().zip(&grads) {
        param.update(|w| {
            w.make_mut::<f32>().iter_mut().zip(grad.as_slice::<f32>()).for_each(|(w, g)| *w += 1e-5 * g)
        });
    }
    peak_bytes() - before
}

#[test]
fn rebuilding_keeps_memory_constant_in_depth() {
    // 64 images against 32 hidden channels: activations outweigh the parameters, which do grow with depth.
    let [shallow, deep] = [8, 32].map(|depth| step(depth, Memory::Rebuild, 64, 32) as f64);
    assert!(deep <= 1.3 * shallow, "depth 32 takes {deep} bytes, depth 8 {shallow}");
    let stored = step(32, Memory::Store, 64, 32) as f64;
    assert!(stored > 4.0 * deep, "storing takes {stored} bytes, rebuilding {deep}");
}

/// `cargo test --release --test glow_memory -- --ignored --nocapture` prints the table of
/// benches/results/memory.md.
#[test]
#[ignore = "prints a table"]
fn table() {
    println!("| depth per level | store, MiB | rebuild, MiB |\n|---|---|---|");
    for depth in [8, 16, 32] {
        let [store, rebuild] = [Memory::Store, Memory::Rebuild]
            .map(|memory| step(depth, memory, 128, 128) as f64 / f64::from(1 << 20));
        println!("| {depth} | {store:.0} | {rebuild:.0} |");
    }
}
