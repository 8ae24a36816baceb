//! `podium costs`: usage and cost by tenant, from a ledger file.

use super::Failure;
use crate::base::Hour;
use crate::ledger::report::{CostRow, GroupBy, Query};
use crate::ledger::store::Store;
use std::io::{self, Write};
use std::path::PathBuf;

/// Reports usage and cost, from the ledger of a running or stopped server.
///
/// `marginal` is the sum of the prices on responses. `loaded` also divides the idle time among
/// tenants, so that it adds up to the cost of the devices. Both are `-` (in JSON null) without a
/// configured price.
///
///     podium costs --ledger podium.sqlite --by tenant,model --from 2026-11-24
#[derive(clap::Args)]
#[command(verbatim_doc_comment)]
pub(super) struct Args {
    /// The file that `podium serve --ledger` writes.
    #[arg(long, env = "PODIUM_LEDGER", value_name = "FILE")]
    ledger: PathBuf,
    /// The columns to group by: hour, tenant, model, tier.
    #[arg(long, value_name = "COLUMNS", value_delimiter = ',', default_value = "tenant,model")]
    by: Vec<GroupBy>,
    /// The first day or hour, in UTC: 2026-11-24 or 2026-11-24T05.
    #[arg(long, value_name = "HOUR")]
    from: Option<Hour>,
    /// The end: the day or hour after the last one.
    #[arg(long, value_name = "HOUR")]
    to: Option<Hour>,
    /// Only this tenant.
    #[arg(long, value_name = "NAME")]
    tenant: Option<String>,
    /// The output format.
    #[arg(long, value_enum, default_value = "table")]
    format: Format,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Format {
    Table,
    Csv,
    Json,
}

pub(super) fn run(args: Args) -> Result<(), Failure> {
    let Args { ledger, by, from, to, tenant, format } = args;
    let query = Query { from: from.unwrap_or_default(), to, tenant, group_by: by };
    let query = query.check().map_err(|error| Failure::usage(format!("--{error}")))?;
    let rows = Store::query(&ledger, &query).map_err(|error| Failure::input(error.to_string()))?;
    let mut out = io::stdout().lock();
    let written = match format {
        Format::Table => table(&mut out, &rows, &query.group_by),
        Format::Csv => csv(&mut out, &rows, &query.group_by),
        Format::Json => serde_json::to_writer_pretty(&mut out, &rows)
            .map_err(io::Error::from)
            .and_then(|()| writeln!(out)),
    };
    super::printed(written)
}

/// The names of the columns to group by. A model's version is printed beside it.
fn headings(by: &[GroupBy]) -> Vec<&'static str> {
    let wanted = GroupBy::ALL.into_iter().filter(|column| by.contains(column));
    wanted
        .flat_map(|column| match column {
            GroupBy::Model => vec!["model", "version"],
            GroupBy::Hour | GroupBy::Tenant | GroupBy::Tier => vec![column.name()],
        })
        .collect()
}

fn group(row: &CostRow, by: &[GroupBy]) -> Vec<String> {
    let group = &row.group;
    let hour = group.hour.map(|hour| hour.to_string());
    // Idle time of nobody is of no tier.
    let tier = by.contains(&GroupBy::Tier).then(|| group.tier.map_or("", |tier| tier.name()).to_owned());
    let text = |text: &Option<std::sync::Arc<str>>| text.as_deref().map(str::to_owned);
    [hour, text(&group.tenant), text(&group.model), text(&group.version), tier]
        .into_iter()
        .flatten()
        .collect()
}

const NUMBERS: [&str; 6] =
    ["requests", "pairs", "device_ns", "discarded_ns", "nanodollars", "loaded_nanodollars"];

/// None where there is no price.
fn numbers(row: &CostRow) -> [Option<u64>; 6] {
    let CostRow { requests, pairs, device_ns, discarded_ns, nanodollars, loaded_nanodollars, .. } = row;
    let counts = [*requests, *pairs, device_ns.0, discarded_ns.0].map(Some);
    let [a, b, c, d] = counts;
    [a, b, c, d, nanodollars.map(|cost| cost.0), loaded_nanodollars.map(|cost| cost.0)]
}

fn csv(out: &mut impl Write, rows: &[CostRow], by: &[GroupBy]) -> io::Result<()> {
    // RFC 4180: a field with a comma, quote or line break is quoted, and quotes in it are doubled.
    let quoted = |field: String| match field.contains([',', '"', '\n', '\r']) {
        true => format!("\"{}\"", field.replace('"', "\"\"")),
        false => field,
    };
    let heading: Vec<&str> = headings(by).into_iter().chain(NUMBERS).collect();
    writeln!(out, "{}", heading.join(","))?;
    for row in rows {
        let numbers = numbers(row).map(|number| number.map_or_else(String::new, |number| number.to_string()));
        let fields: Vec<String> = group(row, by).into_iter().map(quoted).chain(numbers).collect();
        writeln!(out, "{}", fields.join(","))?;
    }
    Ok(())
}

fn table(out: &mut impl Write, rows: &[CostRow], by: &[GroupBy]) -> io::Result<()> {
    let labels = headings(by);
    let shown = ["requests", "pairs", "device s", "discarded s", "marginal $", "loaded $"];
    let mut lines: Vec<Vec<String>> =
        vec![labels.iter().chain(&shown).map(|&heading| heading.to_owned()).collect()];
    let figures = |[requests, pairs, device, discarded, cost, loaded]: [Option<u64>; 6]| {
        let shown = |value: Option<u64>, show: fn(u64) -> String| value.map_or_else(|| "-".to_owned(), show);
        let whole = |value| shown(value, |value| value.to_string());
        let nine =
            |value| shown(value, |value| format!("{}.{:09}", value / 1_000_000_000, value % 1_000_000_000));
        [whole(requests), whole(pairs), nine(device), nine(discarded), nine(cost), nine(loaded)]
    };
    let mut total = [None; 6];
    for row in rows {
        let numbers = numbers(row);
        let add = |(total, number): (&mut Option<u64>, Option<u64>)| {
            *total = number.map(|number| number + total.unwrap_or(0)).or(*total);
        };
        total.iter_mut().zip(numbers).for_each(add);
        lines.push(group(row, by).into_iter().chain(figures(numbers)).collect());
    }
    if rows.len() > 1 {
        let blank =
            std::iter::once("total".to_owned()).chain(vec![String::new(); labels.len().saturating_sub(1)]);
        lines.push(blank.take(labels.len()).chain(figures(total)).collect());
    }
    let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..lines[0].len()).map(width).collect();
    for line in &lines {
        let cells = line.iter().zip(&widths).enumerate().map(|(column, (cell, &width))| {
            // Labels are aligned left, numbers right.
            if column < labels.len() { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
        });
        writeln!(out, "{}", cells.collect::<Vec<_>>().join("  ").trim_end())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::{DeviceNs, Nanodollars};
    use crate::ledger::report::Group;

    fn rows() -> Vec<CostRow> {
        let row = |tenant: &str, requests, cost| CostRow {
            group: Group { tenant: Some(tenant.into()), ..Group::default() },
            requests,
            pairs: 10 * requests,
            device_ns: DeviceNs(1_500_000_000),
            nanodollars: Some(Nanodollars(cost)),
            loaded_nanodollars: Some(Nanodollars(2 * cost)),
            ..CostRow::default()
        };
        vec![row("acme, inc", 3, 1_000_000_000), row("zeta", 20, 5)]
    }

    fn printed(print: impl Fn(&mut Vec<u8>) -> io::Result<()>) -> String {
        let mut out = Vec::new();
        print(&mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_table_lines_up_and_adds_up() {
        let text = printed(|out| table(out, &rows(), &[GroupBy::Tenant]));
        let expected = "\
tenant     requests  pairs     device s  discarded s   marginal $     loaded $
acme, inc         3     30  1.500000000  0.000000000  1.000000000  2.000000000
zeta             20    200  1.500000000  0.000000000  0.000000005  0.000000010
total            23    230  3.000000000  0.000000000  1.000000005  2.000000010
";
        assert_eq!(text, expected);
    }

    #[test]
    fn csv_is_in_whole_units_and_quotes_names() {
        let text = printed(|out| csv(out, &rows(), &[GroupBy::Tenant]));
        let mut lines = text.lines();
        assert_eq!(
            lines.next(),
            Some("tenant,requests,pairs,device_ns,discarded_ns,nanodollars,loaded_nanodollars")
        );
        assert_eq!(lines.next(), Some("\"acme, inc\",3,30,1500000000,0,1000000000,2000000000"));
    }

    #[test]
    fn what_has_no_price_shows_none() {
        let row = |row: CostRow| CostRow { nanodollars: None, loaded_nanodollars: None, ..row };
        let unpriced: Vec<_> = rows().into_iter().map(row).collect();
        let text = printed(|out| table(out, &unpriced, &[GroupBy::Tenant]));
        assert_eq!(text.lines().filter(|line| line.ends_with(" -         -")).count(), 3, "{text}");
        let text = printed(|out| csv(out, &unpriced, &[GroupBy::Tenant]));
        assert_eq!(text.lines().last(), Some("zeta,20,200,1500000000,0,,"));
        let json = serde_json::to_value(&unpriced[0]).unwrap();
        assert!(json["loaded_nanodollars"].is_null(), "{json}");
    }

    #[test]
    fn idle_time_of_nobody_is_of_no_tier() {
        let row = CostRow { loaded_nanodollars: Some(Nanodollars(7)), ..CostRow::default() };
        let rows = [row];
        let text = printed(|out| csv(out, &rows, &[GroupBy::Tier]));
        assert_eq!(text.lines().last(), Some(",0,0,0,0,,7"));
    }

    #[test]
    fn a_report_of_one_line_has_no_columns_of_names() {
        let row = CostRow { requests: 1, ..CostRow::default() };
        let rows = [row];
        assert_eq!(printed(|out| table(out, &rows, &[])).lines().count(), 2);
        assert!(printed(|out| csv(out, &rows, &[])).starts_with("requests,"));
    }
}
