//! Grouping accuracy of the template miner on loghub's labelled samples (Zhu et al. 2019, "Tools and benchmarks for automated
//! log parsing"): the share of lines whose group is exactly the one of the experts.
//!
//!     cargo run --release --example log_templates -- ../shared/data/logs_loghub2k

use std::collections::BTreeMap;
use surprisal::data::{self, ColumnKind, ReadOptions, Templates, Wish};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = std::env::args().nth(1).ok_or("expected the folder of the structured logs")?;
    let mut paths = std::fs::read_dir(folder)?.map(|e| e.map(|e| e.path())).collect::<Result<Vec<_>, _>>()?;
    paths.retain(|p| p.to_string_lossy().contains("log_structured"));
    paths.sort();
    println!("log           lines  experts  mined  grouping accuracy");
    for path in paths {
        let columns = ["Content", "EventId"].map(|name| (name.to_string(), Wish::Categorical)).to_vec();
        let table = data::open(&path, &ReadOptions { columns, ..Default::default() })?;
        let schema = table.schema.as_ref().ok_or("a table without columns")?;
        let cells = table.values.to_f64_vec();
        let texts = |name: &str| -> Result<Vec<&str>, String> {
            let at = schema.columns.iter().position(|c| c.name == name).ok_or(format!("no column {name}"))?;
            let ColumnKind::Categorical { levels } = &schema.columns[at].kind else {
                return Err(format!("{name} holds no texts"));
            };
            Ok(cells.iter().skip(at).step_by(table.dims()).map(|x| levels[*x as usize].as_str()).collect())
        };
        let (lines, experts) = (texts("Content")?, texts("EventId")?);
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
