"""The claims ledger: what is refused, how a claim is settled, the committed table, and its HTML."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from bs4 import BeautifulSoup

from fedmorl.embed import claims_ledger
from fedmorl.evaluation import COLUMNS, VERDICTS, check_claims, count, read_claims, settle, write_claims

LEDGER = Path(__file__).resolve().parents[1] / "results" / "claims.csv"

# numbers of each table (0: a table of words): the cells that the paper prints, and what it counts over them
TABLES = {
    "fedmorl": {1: 12},
    "logo": {1: 0, 2: 160 + 2, 3: 96 + 1, 4: 8, 5: 6 + 1, 6: 6, 7: 25 + 1, 8: 5},
    "mads4": {1: 42 + 1, 2: 60 + 3, 3: 35},
    "networld": {},
}
PLACES = {
    "fedmorl": ["Abstract", "Fig. 1a", "Fig. 1b", "Fig. 1c", "Algorithm 1", "Algorithm 3", "Appendix A.1", "Sec. 6"],
    "logo": ["Abstract", "Fig. 1", "Fig. 2", "Fig. 3", "Fig. 4", "Theorem 1", "Theorem 2", "Sec. 6"],
    "mads4": ["Abstract", "Fig. 1", "Fig. 2", "Fig. 3", "Fig. 4", "Fig. 5", "Algorithm 1", "Algorithm 2", "Sec. 6"],
    "networld": ["Abstract"],
}


def claim(**cells: str) -> dict[str, str]:
    """A valid row, open unless told otherwise."""
    row = dict.fromkeys(COLUMNS, "") | {"id": "logo-table2-a", "paper": "logo", "where": "Table 2", "kind": "number"}
    return row | {"quantity": "LOGO on map A", "paper_value": "17.06 ± 1.33", "verdict": "open"} | cells


def ledger(*rows: dict[str, str]) -> pd.DataFrame:
    return pd.DataFrame(rows or [claim()], columns=list(COLUMNS), dtype=str)


SETTLED = {"our_value": "16.9", "verdict": "reproduced", "command": "make it", "ci_low": "16.1", "ci_high": "17.5"}


# ------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    "cells, message",
    [
        ({"paper": "dreamer"}, "paper must be one of fedmorl, logo, mads4, networld, got 'dreamer'"),
        ({"kind": "guess"}, "kind must be one of number, ordering, statement, got 'guess'"),
        ({"verdict": "true"}, "verdict must be one of open, reproduced"),
        ({"id": "logo-Map A"}, "an id is small letters, digits and dashes"),
        ({"id": "mads4-table2-a"}, "begins with logo-"),
        ({"quantity": ""}, "quantity is empty"),
        ({"paper_value": ""}, "paper_value is empty"),
        ({"quantity": "x" * 161}, "quantity has 161 characters; the limit is 160"),
        ({"where": "Table 2\n"}, "where must be one line of text"),
        ({"unit": " return"}, "unit must be one line of text"),
        ({"our_value": "3"}, "it is open and has our_value"),
        ({"command": "make it"}, "it is open and has command"),
        (SETTLED | {"our_value": ""}, "verdict 'reproduced' needs our_value"),
        (SETTLED | {"command": ""}, "verdict 'reproduced' needs command"),
        (SETTLED | {"verdict": "partly", "command": ""}, "verdict 'partly' needs command"),
        (SETTLED | {"verdict": "not reproduced", "our_value": ""}, "verdict 'not reproduced' needs our_value"),
        ({"verdict": "not testable here"}, "needs a reason, as its scale"),
        (SETTLED | {"ci_low": ""}, "the interval needs two numbers"),
        (SETTLED | {"ci_high": "wide"}, "the interval needs two numbers"),
        (SETTLED | {"ci_high": "nan"}, "the interval needs two numbers"),
        (SETTLED | {"our_value": "16.0"}, r"ci_low <= our_value <= ci_high does not hold for 16.1, 16.0, 17.5"),
        (SETTLED | {"our_value": "17.6"}, "does not hold"),
        (SETTLED | {"our_value": "above", "ci_low": "18"}, "does not hold"),
        (SETTLED | {"n_seeds": "0"}, "n_seeds must be a whole number above 0, got '0'"),
        (SETTLED | {"n_seeds": "2.5"}, "n_seeds must be a whole number above 0"),
    ],
)
def test_a_row_that_breaks_a_rule_is_refused_by_name_in_one_sentence(cells, message):
    row = claim(**cells)
    with pytest.raises(ValueError, match=message) as caught:
        check_claims(ledger(row))
    assert repr(row["id"]) in str(caught.value) and "\n" not in str(caught.value)


def test_rows_that_hold_are_taken():
    rows = [
        claim(**SETTLED, n_seeds="5"),
        claim(**SETTLED | {"id": "logo-order", "our_value": "above", "verdict": "partly"}),
        claim(id="logo-gone", verdict="not testable here", scale="nobody can get the data set"),
        claim(id="networld-a", paper="networld"),
    ]
    check_claims(ledger(*rows))


def test_a_ledger_with_other_columns_twins_or_papers_out_of_order_is_refused():
    with pytest.raises(ValueError, match="the columns of the ledger must be id, paper, where"):
        check_claims(ledger().drop(columns="unit"))
    with pytest.raises(ValueError, match="claim 'logo-table2-a' is in the ledger twice"):
        check_claims(ledger(claim(), claim(where="Table 3")))
    mads4 = claim(id="mads4-a", paper="mads4")
    with pytest.raises(ValueError, match="claim 'logo-table2-a' stands below a later paper"):
        check_claims(ledger(mads4, claim()))


def test_a_file_with_a_short_row_is_refused(tmp_path):
    path = tmp_path / "claims.csv"
    write_claims(ledger(), path)
    path.write_text(path.read_text() + "logo-b,logo,Table 2\n")
    with pytest.raises(ValueError, match=r"row 2 of claims.csv has 3 cells for 14 columns"):
        read_claims(path)


# --------------------------------------------------------------------------------------------------- settle


def test_settle_fills_one_row_and_leaves_its_argument_alone():
    before = ledger(claim(), claim(id="logo-b"))
    after = settle(before, "logo-b", verdict="partly", our_value=16.87654321, ci_low=16.1, ci_high=np.float64(17.5),
                   n_seeds=np.int64(5), scale="1 of 3 maps", command="fedmorl sweep x.yml")  # fmt: skip
    assert before.equals(ledger(claim(), claim(id="logo-b")))
    assert after.iloc[0].to_dict() == claim()
    filled = {"our_value": "16.8765", "ci_low": "16.1", "ci_high": "17.5", "n_seeds": "5", "scale": "1 of 3 maps"}
    assert after.iloc[1].to_dict() == claim(id="logo-b", verdict="partly", command="fedmorl sweep x.yml", **filled)
    assert settle(after, "logo-b", verdict="open").equals(before)


def test_settle_keeps_whole_numbers_and_text_as_they_are():
    for given, kept in ((12_345_678, "12345678"), ("12.80 ± 0.40", "12.80 ± 0.40"), (0.1 + 0.2, "0.3")):
        row = settle(ledger(), "logo-table2-a", verdict="reproduced", our_value=given, command="make it").iloc[0]
        assert row["our_value"] == kept


def test_settle_refuses_an_unknown_claim_and_an_unfounded_verdict():
    with pytest.raises(ValueError, match="there is no claim 'logo-table2-b'; did you mean 'logo-table2-a'"):
        settle(ledger(), "logo-table2-b", verdict="open")
    with pytest.raises(ValueError, match="claim 'logo-table2-a': verdict 'reproduced' needs our_value"):
        settle(ledger(), "logo-table2-a", verdict="reproduced", command="make it")


def test_count_has_every_verdict_and_the_papers_in_order():
    rows = [claim(id="fedmorl-a", paper="fedmorl"), claim(), claim(id="logo-b", **SETTLED)]
    table = count(ledger(*rows))
    assert list(table.index) == ["fedmorl", "logo"] and list(table.columns) == list(VERDICTS)
    assert table.loc["logo"].to_list() == [1, 1, 0, 0, 0] and table.loc["fedmorl", "open"] == 1


# ---------------------------------------------------------------------------------------------------- files


def test_writing_what_was_read_gives_the_same_bytes(tmp_path):
    path = tmp_path / "claims.csv"
    write_claims(read_claims(LEDGER), path)
    assert path.read_bytes() == LEDGER.read_bytes()


def test_text_that_a_csv_must_quote_survives_and_settling_changes_one_line(tmp_path):
    path = tmp_path / "claims.csv"
    claims = ledger(claim(quantity='A "quoted", parted word'), claim(id="logo-b", paper_value="0.40", unit="NA"))
    write_claims(claims, path)
    assert read_claims(path).equals(claims)
    before = path.read_text().splitlines()
    write_claims(settle(claims, "logo-b", verdict="reproduced", our_value=0.4, command="make it"), path)
    changed = [(a, b) for a, b in zip(before, path.read_text().splitlines(), strict=True) if a != b]
    assert changed == [(before[2], "logo-b,logo,Table 2,number,LOGO on map A,NA,0.40,0.4,,,,,reproduced,make it")]


def test_a_refused_or_interrupted_write_leaves_the_old_ledger_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "claims.csv"
    write_claims(ledger(), path)
    old = path.read_bytes()
    with pytest.raises(ValueError, match="kind must be"):
        write_claims(ledger(claim(kind="guess")), path)

    def cut_off(self, target, **options):
        Path(target).write_text("half a ta")
        raise OSError("disk full")

    monkeypatch.setattr(pd.DataFrame, "to_csv", cut_off)
    with pytest.raises(OSError, match="disk full"):
        write_claims(ledger(claim(id="logo-b")), path)
    assert path.read_bytes() == old and list(tmp_path.iterdir()) == [path]


# ----------------------------------------------------------------------------------------- the committed table


@pytest.mark.parametrize("paper", TABLES)
def test_the_committed_ledger_has_every_cell_figure_and_theorem_of_the_paper(paper):
    claims = read_claims(LEDGER)
    ours = claims[claims["paper"] == paper]
    missing = [place for place in PLACES[paper] if place not in set(ours["where"])]
    assert not missing, f"no claim of {paper} stands at {missing}"
    for table, cells in TABLES[paper].items():
        here = ours[ours["where"] == f"Table {table}"]
        numbers = here[here["kind"] == "number"]
        assert len(here) and len(numbers) == cells, f"{paper}, Table {table}: {len(numbers)} numbers, not {cells}"
    beyond = set(ours["where"]) & {f"Table {k}" for k in range(1, 30)} - {f"Table {k}" for k in TABLES[paper]}
    assert not beyond, f"{paper} has no {beyond}"


def test_every_number_of_the_committed_ledger_has_a_digit():
    claims = read_claims(LEDGER)
    numbers = claims[claims["kind"] == "number"]
    assert numbers.loc[~numbers["paper_value"].str.contains(r"\d"), "id"].to_list() == []


# ------------------------------------------------------------------------------------------------- the HTML


def test_the_page_reads_without_a_script():
    rows = [
        claim(quantity="A <b> & C", unit="return"),
        claim(id="logo-b", where="Abstract", **SETTLED, n_seeds="5", scale="small"),
        claim(id="logo-c", where="Table 10"),
        claim(id="mads4-a", paper="mads4"),
    ]
    soup = BeautifulSoup(claims_ledger(ledger(*rows)).html, "html.parser")
    assert [h.text for h in soup.select("h3")] == ["LOGO", "MADS4"]
    captions = [caption.text for caption in soup.select("details > table > caption")]
    assert captions == ["LOGO, Abstract", "LOGO, Table 2", "LOGO, Table 10", "MADS4, Table 2"]
    assert not soup.select("details[open]") and soup.select_one("form").has_attr("hidden")
    assert soup.select_one("details summary").text == "Abstract 1 claim1 reproduced"
    head = [th.text for th in soup.select("table:first-of-type thead th[scope=col]")][:4]
    assert head == ["Claim", "Paper", "Ours", "Verdict"]
    row = soup.select_one("#claim-logo-b")
    cells = [cell.text for cell in row.find_all(["th", "td"])]
    assert cells == ["LOGO on map A number", "17.06 ± 1.33", "16.9 [16.1, 17.5], 5 seeds small make it", "reproduced"]
    assert row.th["scope"] == "row"
    quoted = soup.select_one("#claim-logo-table2-a")
    assert quoted.th.text == "A <b> & C number" and quoted.td.text == "17.06 ± 1.33 return"
    places = [option["value"] for option in soup.select("select[name=where] option")]
    assert places == ["", "Abstract", "Table 2", "Table 10"]


def test_the_page_of_the_committed_ledger_is_whole_and_light():
    claims = read_claims(LEDGER)
    html = claims_ledger(claims).html
    assert sorted(re.findall(r'<tr id="claim-([a-z0-9-]+)"', html)) == sorted(claims["id"])
    assert len(html.encode()) < 900_000  # of the 1.5 MB that a page may weigh


def test_the_page_refuses_an_invalid_ledger():
    with pytest.raises(ValueError, match="kind must be"):
        claims_ledger(ledger(claim(kind="guess")))
