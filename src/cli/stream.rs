//! `score -`: rows from standard input ([`crate::data::RowReader`]), each judged and flushed before the next is read.

use super::Common;
use super::progress::say;
use super::score::{Decider, Line, Rule, csv, header};
use crate::calibrate::{Drift, OnlineFdr, OnlineRule};
use crate::data::{Dataset, RowReader};
use crate::error::{Error, ErrorKind, Result};
use crate::evidence::{Judges, Need, silent};
use crate::models::Input;
use crate::random::Philox;
use crate::report::bits_per_dim;
use crate::tensor::{DType, Plain, Tensor, with_plain};
use std::io::{BufRead, Read, Write};

/// How to judge a stream.
pub struct Options {
    /// Rows between false alarms of drift.
    pub drift: Option<f64>,
    /// JSON objects, one per line, instead of CSV.
    pub json: bool,
    /// What the scorer needs.
    pub needs: Vec<Need>,
}

/// The most bytes of a cell in text, with its separator.
const BYTES_PER_NUMBER: usize = 256;
/// A line may be so long however few its columns: it may hold more than they ask for.
const LINE: usize = 1 << 16;

/// Reads to the end of the input. Memory does not grow with the number of rows.
pub fn run(judges: &Judges, decider: Option<Decider>, options: &Options, common: &Common) -> Result<()> {
    let input = judges.model.model.input();
    if input.classes.is_some() {
        return Err(Error::new(
            ErrorKind::Usage,
            "a stream has no labels; the model is conditioned on classes",
        ));
    }
    if let Some(per) = decider.as_ref().map(|d| d.scorer.rows_per_score()).filter(|per| *per > 1) {
        let message = format!("this scorer judges {per} rows at once; a stream is judged row by row");
        return Err(Error::new(ErrorKind::Usage, message));
    }
    let mut fdr = match decider.as_ref().map(|d| &d.rule) {
        Some(Rule::Fdr(q, _)) => Some(OnlineFdr::new(OnlineRule::Lord, *q)?),
        _ => None,
    };
    let mut drift = options.drift.map(Drift::new).transpose()?;
    if drift.is_some() && decider.is_none() {
        return Err(Error::new(ErrorKind::Usage, "--drift needs a calibrated scorer: --reference PATH"));
    }
    let mut ties = Philox::new(common.seed.unwrap_or(0)).stream();
    let mut out = std::io::stdout().lock();
    let mut reader = std::io::stdin().lock();
    let schema = judges.model.meta.data.as_ref().and_then(|d| d.schema.as_ref());
    let dims: usize = input.shape.iter().product();
    let mut rows = RowReader::new(schema, dims);
    let (mut text, mut line_number, mut index) = (Vec::new(), 0u64, 0);
    let mut emit = |line: &str| match out.write_all(line.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => Ok(false),
        Err(e) => Err(Error::io("standard output", e)),
        Ok(()) => Ok(true),
    };
    if !options.json && !emit(&header(false, false))? {
        return Ok(());
    }
    loop {
        text.clear();
        let most = (dims * BYTES_PER_NUMBER + BYTES_PER_NUMBER).max(LINE) as u64;
        let read = reader
            .by_ref()
            .take(most)
            .read_until(b'\n', &mut text)
            .map_err(|e| Error::io("standard input", e))?;
        if read == 0 {
            return Ok(());
        }
        line_number += 1;
        if read as u64 == most && text.last() != Some(&b'\n') {
            let message = format!(
                "standard input, line {line_number}: longer than {most} bytes; expected {dims} numbers"
            );
            return Err(Error::new(ErrorKind::Format, message));
        }
        let row = parse(&text, &input, &mut rows).map_err(|what| {
            Error::new(ErrorKind::Format, format!("standard input, line {line_number}: {what}"))
        })?;
        let Some(row) = row else { continue };
        let mut data = Dataset::new("standard input", row);
        input.check(&data).map_err(|e| e.at(format!("line {line_number}")))?;
        data.name = format!("standard input, line {line_number}");
        // Each row has random numbers of its own, for models whose likelihood is randomised.
        let seed = common.seed.unwrap_or(judges.model.meta.seed).wrapping_add(index as u64);
        let known = judges.know(data, &options.needs, Some(seed), &silent)?;
        let nats = known.nats[0];
        let mut line = Line { index, nats, bits_per_dim: bits_per_dim(nats, dims), ..Default::default() };
        if let Some(decider) = &decider {
            let score = decider.scorer.score(&known)?[0];
            let p = decider.calibration.p_value(score);
            let anomaly = match (&decider.rule, &mut fdr) {
                (_, Some(fdr)) => fdr.decide(p),
                (Rule::Threshold(threshold), _) => score > *threshold,
                (Rule::Fdr(q, _), None) => p <= *q,
            };
            (line.score, line.p_value) = (Some(score), Some(p));
            line.decision = Some(if anomaly { "anomaly" } else { "normal" });
            let u = (ties.below(1 << 53) as f64 + 0.5) / (1u64 << 53) as f64;
            let smoothed = decider.calibration.smoothed_p_value(score, u);
            if drift.as_mut().is_some_and(|drift| drift.observe(smoothed.clamp(0.0, 1.0))) {
                say(common, format!("drift: by row {index} the stream is no longer like the reference"));
            }
        }
        let mut printed = String::new();
        if options.json {
            printed = super::output::json(&line, false)? + "\n";
        } else {
            csv(&mut printed, &line);
        }
        if !emit(&printed)? {
            return Ok(());
        }
        index += 1;
    }
}

/// The row in a line, if it has one, as the model takes it.
fn parse(line: &[u8], input: &Input, rows: &mut RowReader) -> std::result::Result<Option<Tensor>, String> {
    let text = std::str::from_utf8(line).map_err(|_| "not UTF-8".to_string())?;
    let Some(numbers) = rows.read(text)? else { return Ok(None) };
    let dtype = input.dtypes.first().copied().unwrap_or(DType::F32);
    let (possible, wanted): (fn(f64, bool) -> bool, &str) = match dtype {
        DType::U8 => (|x, _| x.fract() == 0.0 && (0.0..=255.0).contains(&x), "0 to 255"),
        DType::I32 => (|x, _| x.fract() == 0.0 && x.abs() < 2e9, "a whole number"),
        _ => (|x, missing| x.is_finite() || (missing && x.is_nan()), "a finite number"),
    };
    if let Some(i) = numbers.iter().position(|&x| !possible(x, input.missing)) {
        return Err(format!("cell {i}: {}; expected {wanted}", numbers[i]));
    }
    let mut shape = vec![1];
    shape.extend(&input.shape);
    Ok(Some(with_plain!(dtype, T => Tensor::from_fn(shape, |i| <T as Plain>::from_f64(numbers[i])))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_what_the_model_takes() {
        let read = |line: &[u8], input: &Input| parse(line, input, &mut RowReader::new(None, 2));
        let floats = Input { shape: vec![2], dtypes: &[DType::F32], missing: true, ..Default::default() };
        assert!(read(b"1,", &floats).unwrap().unwrap().to_f64_vec()[1].is_nan());
        assert_eq!(read(b"\r\n", &floats).unwrap().map(|row| row.to_f64_vec()), None);
        for line in [&b"1,inf"[..], b"\xff", b"1"] {
            assert!(read(line, &floats).is_err(), "{line:?}");
        }
        let bytes = Input { shape: vec![1, 2, 1], dtypes: &[DType::U8], ..Default::default() };
        assert_eq!(read(b"0,255", &bytes).unwrap().unwrap().as_slice::<u8>(), [0, 255]);
        assert!(read(b"0,256", &bytes).unwrap_err().contains("0 to 255"));
        assert!(read(b"0,", &bytes).is_err());
    }
}
