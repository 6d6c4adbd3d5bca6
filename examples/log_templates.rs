//! Grouping accuracy of the template miner on loghub's labelled samples (Zhu et al. 2019, "Tools and benchmarks for
//! automated log parsing"): the share of lines whose group is exactly the one of the experts.
//!
//!     cargo run --release --example log_templates -- ../shared/data/logs_loghub2k

use flate2::read::MultiGzDecoder;
use std::collections::BTreeMap;
use std::io::Read;
use surprisal::data::Templates;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = std::env::args().nth(1).ok_or("expected the folder of the structured logs")?;
    let mut paths = std::fs::read_dir(folder)?.map(|e| e.map(|e| e.path())).collect::<Result<Vec<_>, _>>()?;
    paths.retain(|p| p.to_string_lossy().contains("log_structured"));
    paths.sort();
    println!("log           lines  experts  mined  grouping accuracy");
    for path in paths {
        let mut text = String::new();
        MultiGzDecoder::new(std::fs::File::open(&path)?).read_to_string(&mut text)?;
        let rows: Vec<Vec<String>> = text.lines().map(cells).collect();
        let column = |name: &str| -> Result<Vec<&str>, String> {
            let at = rows[0].iter().position(|c| c == name).ok_or(format!("no column {name}"))?;
            rows[1..].iter().map(|r| r.get(at).map(String::as_str).ok_or("a short row".to_string())).collect()
        };
        let (lines, experts) = (column("Content")?, column("EventId")?);
        let mined = Templates::mine(lines.iter().copied(), usize::MAX);
        let found: Vec<usize> = lines.iter().map(|l| mined.find(l).map_or(0, |id| id + 1)).collect();
        let mut groups: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        let mut theirs: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
        for i in 0..lines.len() {
            groups.entry(found[i]).or_default().push(i);
            theirs.entry(experts[i]).or_default().push(i);
        }
        let right = (0..lines.len()).filter(|&i| groups[&found[i]] == theirs[experts[i]]).count();
        let (n, name) = (lines.len(), path.file_name().unwrap_or_default().to_string_lossy().into_owned());
        let name = name.split("_2k").next().unwrap_or_default().to_string();
        println!("{name:12} {n:6} {:8} {:6}  {:.3}", theirs.len(), mined.len(), right as f64 / n as f64);
    }
    Ok(())
}

/// The cells of a line of CSV; quotes are doubled in quotes.
fn cells(line: &str) -> Vec<String> {
    let (mut out, mut quoted) = (vec![String::new()], false);
    let mut chars = line.chars().peekable();
    while let Some(c) = chars.next() {
        let cell = out.last_mut().expect("there is one");
        match c {
            '"' if quoted && chars.peek() == Some(&'"') => cell.extend(chars.next()),
            '"' => quoted = !quoted,
            ',' if !quoted => out.push(String::new()),
            c => cell.push(c),
        }
    }
    out
}
