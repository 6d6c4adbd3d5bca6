//! `eval`: data sets held against a reference under a trained model.

use super::compare::{Comparing, publish};
use super::evidence::{calibrations, chosen, know, needs, needs_to_score, open};
use super::progress::{catch_interrupts, say};
use super::{Common, families, inputs, output};
use crate::calibrate::calibrate;
use crate::error::{Error, ErrorKind, Result};
use crate::evidence::{Evidence, Judges};
use crate::report::{FamilyRow, Page, table};
use crate::scorers::{SCORERS, ScorerInfo};
use std::path::{Path, PathBuf};

#[derive(clap::Args)]
pub struct Args {
    /// Model files, or folders that `train` wrote; of several models each gets a folder with its report in
    /// --out, beside a report that holds them side by side with measured speeds
    #[arg(required = true, value_name = "MODEL")]
    models: Vec<PathBuf>,
    /// Normal data that the model was not trained on
    #[arg(long, value_name = "PATH")]
    reference: PathBuf,
    /// Data to hold against it
    #[arg(long, value_name = "PATH", required = true, num_args = 1..)]
    other: Vec<PathBuf>,
    #[command(flatten)]
    reading: inputs::Reading,
    /// The background model of likelihood ratios; of several models one for all, or one for each in their order
    #[arg(long, value_name = "FILE")]
    background: Vec<PathBuf>,
    /// Only these scorers, or "all" [default: those that apply and cost no more than a forward pass]
    #[arg(long, value_name = "NAME")]
    scorer: Vec<String>,
    /// Folder that keeps log-likelihoods from one evaluation to the next
    #[arg(long, value_name = "DIR")]
    cache: Option<PathBuf>,
    /// The false-alarm rate whose keeping the report shows
    #[arg(long, value_name = "RATE", default_value_t = 0.05)]
    alpha: f64,
    /// Folder for results.json and report.html
    #[arg(long, value_name = "DIR", default_value = "surprisal-out/eval")]
    out: PathBuf,
}

/// Compares, writes, prints.
pub fn run(args: &Args, common: &Common) -> Result<()> {
    catch_interrupts()?;
    if !(args.alpha > 0.0 && args.alpha < 1.0) {
        let message = format!("--alpha {}: expected a rate between 0 and 1", args.alpha);
        return Err(Error::new(ErrorKind::Usage, message));
    }
    let backgrounds = args.background.len();
    if backgrounds > 1 && backgrounds != args.models.len() {
        let n = args.models.len();
        let message = format!("{backgrounds} background models for {n} models; expected none, one, or {n}");
        return Err(Error::new(ErrorKind::Usage, message));
    }
    inputs::writable(&args.out)?;
    args.cache.as_deref().map(inputs::writable).transpose()?;
    let mut pages = Vec::new();
    for (i, model) in args.models.iter().enumerate() {
        let background = args.background.get(i).or(args.background.first());
        let mut found = page(args, common, model, background.map(PathBuf::as_path))?;
        if args.models.len() > 1 {
            let Found { judges, reference, page } = &found;
            let parameters = output::thousands(judges.model.model.params().count());
            let row = families::measure(judges, reference, &page.rows, parameters)?;
            found.page.families.push(row);
        }
        pages.push(found.page);
    }
    if let [page] = &pages[..] {
        return publish(common, page, &args.out);
    }
    let mut together = Page { title: format!("{} models", pages.len()), ..Page::default() };
    for (i, page) in pages.iter_mut().enumerate() {
        let name = page.rows.first().map_or("", |row| row.model.as_str());
        let stem = Path::new(name).file_stem().unwrap_or_default().to_string_lossy();
        let folder = format!("{}-{stem}", i + 1);
        let dir = args.out.join(&folder);
        for row in page.families.drain(..) {
            together.families.push(FamilyRow { report: Some(format!("{folder}/report.html")), ..row });
        }
        inputs::writable(&dir)?;
        page.write_atomic(dir.join("report.html"))?;
        say(common, format!("{}", dir.join("report.html").display()));
    }
    let said = [("reference", &args.reference)].into_iter().chain(args.other.iter().map(|o| ("other", o)));
    together.settings = said.map(|(key, path)| (key.into(), path.display().to_string())).collect();
    together.settings.push(("threads".into(), rayon::current_num_threads().to_string()));
    together.write_atomic(args.out.join("report.html"))?;
    say(common, format!("{}", args.out.join("report.html").display()));
    let rows: Vec<_> = pages.iter().flat_map(|page| page.rows.iter().cloned()).collect();
    let results = output::json_lines(&rows)?;
    crate::files::write_atomic(args.out.join("results.json"), results.as_bytes())?;
    if common.json {
        return output::print(&results);
    }
    pages.iter().try_for_each(|page| output::print(&format!("{}\n{}\n", page.title, table(&page.rows))))
}

/// Everything about one model.
struct Found {
    judges: Judges,
    reference: Evidence,
    page: Page,
}

fn page(args: &Args, common: &Common, model: &Path, background: Option<&Path>) -> Result<Found> {
    let scorers = chosen(&args.scorer)?;
    let mut judges = open(common, model, background)?;
    judges.cache = args.cache.clone();
    let open = |path: &PathBuf| {
        let data = args.reading.open_for(path, &judges.model)?;
        judges.model.model.input().check(&data)?;
        Ok(data)
    };
    let reference = open(&args.reference)?;
    let others = args.other.iter().map(open).collect::<Result<Vec<_>>>()?;
    let mut names = std::iter::once(&reference).chain(&others).map(|d| d.name.as_str()).collect::<Vec<_>>();
    names.sort_unstable();
    if let Some(twice) = names.windows(2).find(|w| w[0] == w[1]) {
        let message = format!("two data sets are called \"{}\": rename one of the files", twice[0]);
        return Err(Error::new(ErrorKind::Usage, message));
    }
    let mut reference = know(&judges, common, reference, &needs(&scorers))?;
    let named = |info: &ScorerInfo| args.scorer.iter().any(|name| name == info.name);
    if let Some(refused) = scorers.iter().find(|info| named(info) && info.applies(&reference).is_err()) {
        refused.applies(&reference)?;
    }
    let to_score = needs_to_score(&scorers);
    let wanted: Vec<_> = scorers.into_iter().filter(|info| info.applies(&reference).is_ok()).collect();
    let is_wanted = |name: &str| wanted.iter().any(|info| info.name == name);
    let mut calibrations = calibrations(&judges)?;
    calibrations.retain(|c| is_wanted(c.name()));
    if calibrations.len() < wanted.len() {
        let n = reference.len();
        let note =
            format!("the model file does not calibrate every scorer: {} of {n} reference rows do", n / 2);
        say(common, note);
        calibrations = calibrate(&reference.rows(0..n / 2), &|info| is_wanted(info.name))?;
        reference = reference.rows(n / 2..n);
    }
    calibrations.sort_by_key(|c| SCORERS.iter().position(|info| info.name == c.name()));
    let others =
        others.into_iter().map(|data| know(&judges, common, data, &to_score)).collect::<Result<Vec<_>>>()?;
    let comparing = Comparing { judges: &judges, calibrations, reference, others, alpha: args.alpha };
    let mut page = comparing.page(common)?;
    let meta = &judges.model.meta;
    page.title = format!("{} on {}", meta.preset, comparing.reference.data().name);
    page.settings = vec![
        ("model file".into(), model.display().to_string()),
        ("model".into(), format!("{} ({})", meta.preset, meta.model)),
        ("parameters".into(), output::thousands(judges.model.model.params().count())),
        (
            "trained on".into(),
            meta.data.as_ref().map_or(String::new(), |d| format!("{} x {}", d.examples, d.name)),
        ),
        ("background".into(), background.map_or("none".into(), |b| b.display().to_string())),
        ("seed".into(), meta.seed.to_string()),
    ];
    let reference = comparing.reference;
    Ok(Found { judges, reference, page })
}
