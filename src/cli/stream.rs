//! `score -`: rows of numbers from standard input, each judged and flushed before the next is read.

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
    let columns = schema.map(RowReader::new);
    let dims: usize = input.shape.iter().product();
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
        let most = (dims * BYTES_PER_NUMBER + BYTES_PER_NUMBER) as u64;
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
        if text.iter().all(u8::is_ascii_whitespace) {
            continue;
        }
        let row = parse(&text, &input, columns.as_ref()).map_err(|what| {
            Error::new(ErrorKind::Format, format!("standard input, line {line_number}: {what}"))
        })?;
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

/// One row of cells, separated by commas, semicolons, spaces or tabs, or a JSON array of numbers. An empty cell is a
/// missing one. With a schema the cells are those of its columns, in its order.
fn parse(line: &[u8], input: &Input, columns: Option<&RowReader>) -> std::result::Result<Tensor, String> {
    let text = std::str::from_utf8(line).map_err(|_| "not UTF-8".to_string())?.trim();
    let text = text.strip_prefix('[').and_then(|t| t.strip_suffix(']')).unwrap_or(text);
    let cells: Vec<&str> = match text.contains([',', ';', '\t']) {
        true => text.split([',', ';', '\t']).map(str::trim).collect(),
        false => text.split_whitespace().collect(),
    };
    let dims: usize = input.shape.iter().product();
    if cells.len() != dims {
        return Err(format!("{} cells; the model expects {dims}", cells.len()));
    }
    let number = |(i, cell): (usize, &&str)| match *cell {
        "" | "null" | "NaN" | "nan" => Ok(f64::NAN),
        cell => cell.parse().map_err(|_| format!("cell {i}: \"{cell}\" is no number")),
    };
    let numbers: Vec<f64> = match columns {
        Some(columns) => columns.read(&cells)?,
        None => cells.iter().enumerate().map(number).collect::<std::result::Result<_, _>>()?,
    };
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
    Ok(with_plain!(dtype, T => Tensor::from_fn(shape, |i| <T as Plain>::from_f64(numbers[i]))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{Column, ColumnKind, Schema};

    #[test]
    fn rows_in_many_dresses() {
        let input = Input { shape: vec![3], dtypes: &[DType::F32], missing: true, ..Default::default() };
        for line in ["1,2.5,-3e2", " 1 ; 2.5;-3e2 \r\n", "[1, 2.5, -300]\n", "1 2.5 -300", "1\t2.5\t-300"] {
            assert_eq!(
                parse(line.as_bytes(), &input, None).unwrap().to_f64_vec(),
                [1.0, 2.5, -300.0],
                "{line:?}"
            );
        }
        assert!(parse(b"1,,3", &input, None).unwrap().to_f64_vec()[1].is_nan());
        for (line, words) in
            [("1,2", "expects 3"), ("1,2,x", "cell 2"), ("1,2,inf", "cell 2"), ("\u{fffd}", "1 cells")]
        {
            let message = parse(line.as_bytes(), &input, None).unwrap_err();
            assert!(message.contains(words), "{line:?}: {message}");
        }
        let kinds = ColumnKind::Categorical { levels: vec!["red".into(), "blue".into()] };
        let column = |i: usize, kind: &ColumnKind| Column {
            name: format!("c{i}"),
            kind: kind.clone(),
            nullable: true,
        };
        let columns =
            vec![column(0, &kinds), column(1, &ColumnKind::Numeric), column(2, &ColumnKind::Boolean)];
        let schema = Schema { columns };
        let reader = RowReader::new(&schema);
        let row = parse(b"blue, 2.5, true", &input, Some(&reader)).unwrap();
        assert_eq!(row.to_f64_vec(), [1.0, 2.5, 1.0]);
        assert!(parse(b"green,1,0", &input, Some(&reader)).unwrap_err().contains("c0"));
        assert!(parse(b"\xff", &input, None).is_err());
        let bytes = Input { shape: vec![1, 2, 1], dtypes: &[DType::U8], ..Default::default() };
        assert_eq!(parse(b"0,255", &bytes, None).unwrap().as_slice::<u8>(), [0, 255]);
        assert!(parse(b"0,256", &bytes, None).unwrap_err().contains("0 to 255"));
        assert!(parse(b"0,", &bytes, None).is_err());
    }
}
