//! What there is to look at: experiments, images, samples, rows of tables.

use super::{Text, probability, section, significant};
use crate::report::page::{Gallery, Set, Shot, WorstRow};
use crate::report::{Page, heat, png};
use crate::scorers;
use std::fmt::Write;

impl Page {
    pub(super) fn figures(&self, out: &mut String) {
        let mut body = String::new();
        for figure in &self.figures {
            let chart = figure.render(|name| self.color(name));
            if !chart.is_empty() {
                let (title, intro) = (Text(&figure.title), Text(&figure.intro));
                let _ = writeln!(
                    body,
                    "<div class=\"figure-block\"><h3>{title}</h3>\n<p>{intro}</p>\n<figure>{chart}</figure></div>"
                );
            }
        }
        if !body.is_empty() {
            let intro = "Experiments that show what the likelihood depends on.";
            section(
                out,
                "What the likelihood measures",
                intro,
                &format!("<div class=\"figures\">{body}</div>\n"),
            );
        }
    }

    pub(super) fn galleries(&self, out: &mut String) {
        let shots =
            || self.sets.iter().flat_map(|s| &s.galleries).flat_map(|g| g.most.iter().chain(&g.least));
        if shots().next().is_none() {
            return;
        }
        let scale = heat::scale(shots().filter_map(|s| s.surprisal.as_deref()));
        let mut body = String::new();
        if let Some(top) = scale {
            let _ = writeln!(
                body,
                "<p class=\"ramp\"><span>0</span><i style=\"background:{}\"></i><span>{top:.1} bits or more</span></p>",
                heat::css_gradient()
            );
        }
        for set in &self.sets {
            for gallery in &set.galleries {
                body.push_str(&gallery_html(set, gallery, self.color(&set.name), scale));
            }
        }
        let intro = match scale {
            Some(_) => {
                "The images at both ends of each ranking, with score, p-value and row. Beside each, the surprisal of \
                 its pixels: bright pixels are those that the model did not expect, given the ones before."
            }
            None => "The images at both ends of each ranking, with score, p-value and row.",
        };
        section(out, "The most and the least anomalous", intro, &body);
    }

    pub(super) fn worst_rows(&self, out: &mut String) {
        let mut body = String::new();
        for set in self.sets.iter().filter(|s| !s.worst.is_empty()) {
            let (color, name) = (self.color(&set.name), Text(&set.name));
            let _ = writeln!(
                body,
                "<h3><i class=\"swatch c{color}\"></i>{name} <span>by {}</span></h3>\n<table class=\"worst\"><thead><tr>\
                 <th scope=\"col\">Row</th><th scope=\"col\">Score</th><th scope=\"col\">p</th><th scope=\"col\">Cells</th></tr></thead>\n<tbody>",
                Text(&set.worst[0].scorer)
            );
            for WorstRow { row, score, p_value, cells, .. } in &set.worst {
                let cell = |(column, value, nats): &(String, String, f64)| {
                    format!("<span>{} = {} <b>{}</b></span>", Text(column), Text(value), significant(*nats))
                };
                let cells: Vec<String> = cells.iter().map(cell).collect();
                let _ = writeln!(
                    body,
                    "<tr><th scope=\"row\">#{row}</th><td data-label=\"Score\">{}</td><td data-label=\"p\">{}</td>\
                     <td data-label=\"Cells\" class=\"cells\">{}</td></tr>",
                    significant(*score),
                    probability(*p_value),
                    cells.join(" ")
                );
            }
            body.push_str("</tbody></table>\n");
        }
        if !body.is_empty() {
            let intro = "The most anomalous rows, and in each the cells that are least likely given all others: by how many nats \
                         other values of the column would be likelier there.";
            section(out, "Rows and the cells behind them", intro, &body);
        }
    }

    pub(super) fn drawn(&self, out: &mut String) {
        if self.samples.is_empty() {
            return;
        }
        let mut body = String::from("<div class=\"sheet\">");
        for (i, image) in self.samples.iter().enumerate() {
            let _ = write!(
                body,
                "<img alt=\"sample {}\" src=\"{}\">",
                i + 1,
                png::data_uri(&image.pixels, image.dims)
            );
        }
        body.push_str("</div>\n");
        section(
            out,
            "What the model draws",
            "Samples from the model itself: what it takes the reference to be.",
            &body,
        );
    }
}

fn gallery_html(set: &Set, gallery: &Gallery, color: usize, scale: Option<f64>) -> String {
    let unit = scorers::find(&gallery.scorer).map_or("", |info| info.unit);
    let mut html = format!(
        "<div class=\"gallery\"><h3><i class=\"swatch c{color}\"></i>{} <span>by {}{}</span></h3>\n",
        Text(&set.name),
        Text(&gallery.scorer),
        if unit.is_empty() { String::new() } else { format!(", in {unit}") }
    );
    for (title, shots) in [("Most anomalous", &gallery.most), ("Least anomalous", &gallery.least)] {
        if shots.is_empty() {
            continue;
        }
        let _ = write!(html, "<h4>{title}</h4>\n<div class=\"shots\">");
        shots.iter().for_each(|shot| html.push_str(&shot_html(shot, scale)));
        html.push_str("</div>\n");
    }
    html + "</div>\n"
}

fn shot_html(shot: &Shot, scale: Option<f64>) -> String {
    let Shot { row, image, score, p_value, surprisal } = shot;
    let [h, w, _] = image.dims;
    let mut html = format!(
        "<figure class=\"shot\"><div><img alt=\"row {row}\" src=\"{}\">",
        png::data_uri(&image.pixels, image.dims)
    );
    if let (Some(map), Some(top)) = (surprisal, scale)
        && map.len() == h * w
    {
        let _ = write!(
            html,
            "<img alt=\"surprisal map of row {row}\" src=\"{}\">",
            heat::data_uri(map, h, w, top)
        );
    }
    let p = p_value.map(|p| format!("<span>p {}</span>", probability(p))).unwrap_or_default();
    let _ = write!(
        html,
        "</div><figcaption><b>{}</b>{p}<span>#{row}</span></figcaption></figure>",
        significant(*score)
    );
    html
}
