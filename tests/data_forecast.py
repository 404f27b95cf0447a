"""Measurements as a user would have them: oil temperature of transformers, sunspots, rivers with their weather."""

from __future__ import annotations

import gzip
import io
import zipfile
from datetime import date
from pathlib import Path

import polars as pl
import real_data

WEATHER = ["rain", "radiation", "warmest", "coldest", "vapour"]
ATTRIBUTES = {"topo": ["elev_mean", "slope_mean", "area_gages2"],
              "clim": ["p_mean", "pet_mean", "p_seasonality", "frac_snow", "aridity", "high_prec_freq"],
              "vege": ["frac_forest", "lai_max"],
              "soil": ["soil_depth_statsgo", "soil_porosity", "sand_frac", "clay_frac"], "geol": ["geol_permeability"]}


def write_ett(folder: Path, name: str = "ETTh1", window: int = 96, rows: int | None = None) -> Path:
    """Oil temperature and six loads of a transformer, in the usual split: 12, 4 and 4 months of 30 days.

    The validation and test files begin `window` rows early, which are only read.
    """
    table = pl.read_csv(gzip.decompress((real_data.needed("time_series/ett") / f"{name}.csv.gz").read_bytes()))
    month = 30 * 24 * (4 if "m" in name else 1)
    edges = [0, 12 * month, 16 * month, 20 * month]
    if rows is not None:  # the last of the training rows, and the first of the others
        edges = [edges[1] - 4 * rows, edges[1], edges[1] + rows, edges[1] + 2 * rows]
    for part, start, end in zip(("train", "valid", "test"), edges, edges[1:]):
        table[start - (window if part != "train" else 0):end].write_csv(folder / f"{part}.csv")
    return folder


def write_sunspots(folder: Path, window: int = 132) -> Path:
    """Zuerich's monthly sunspot numbers; the last 20 years are to test, the 20 before to validate."""
    source = real_data.needed("time_series/classic") / "monthly_sunspots.csv.gz"
    table = pl.read_csv(gzip.decompress(source.read_bytes()))
    for part, rows in (("train", table[:-480]), ("valid", table[-480 - window:-240]), ("test", table[-240 - window:])):
        rows.write_csv(folder / f"{part}.csv")
    return folder


def write_river(folder: Path, gauge: str = "01031500", window: int = 365) -> Path:
    """Weather and runoff (mm a day) of one basin: water years 1981 to 1995 to train (the last two validate), to 2010 to
    test. `model` is the runoff that the calibrated SAC-SMA + Snow-17 gives, the published figure to stand beside."""
    source = real_data.needed("hydrology/camels_us_full_record") / f"{gauge}_05_model_output.txt.gz"
    table = _fields(gzip.decompress(source.read_bytes()).decode())
    table = table.select(_day(table).alias("date"), rain="PRCP", melt="RAIM", warmth="TAIR", evaporation="PET",
                         runoff="OBS_RUN", model="MOD_RUN")
    weather = source.with_name(f"{gauge}_lump_cida_forcing_leap.txt.gz")
    if weather.is_file():
        table = table.drop("rain", "melt", "warmth")
        table = table.join(_weather(gzip.decompress(weather.read_bytes()).decode()), "date")
    else:
        table = table.drop("melt")
    edges = [date(1980, 10, 1), date(1993, 10, 1), date(1995, 10, 1), date(2010, 10, 1)]
    for part, start, end in zip(("train", "valid", "test"), edges, edges[1:]):
        first = int((table["date"] < start).sum())
        table[max(0, first - window):int((table["date"] < end).sum())].write_csv(folder / f"{part}.csv")
    return folder


def write_rivers(folder: Path, window: int = 180) -> Path:
    """Four basins with their attributes: 2000 and 2001 to train, 2002 to validate on, in one table."""
    tables = []
    with zipfile.ZipFile(real_data.needed("hydrology/camels_us_4basins") / "camels_us.zip") as packed:
        names = packed.namelist()

        def text(end: str) -> str:
            return packed.read(next(name for name in names if name.endswith(end))).decode()

        attributes = pl.DataFrame()
        for part, columns in ATTRIBUTES.items():
            read = pl.read_csv(io.StringIO(text(f"camels_{part}.txt")), separator=";", null_values="NA",
                               schema_overrides={"gauge_id": pl.String}).select("gauge_id", *columns)
            attributes = read if attributes.is_empty() else attributes.join(read, "gauge_id")
        for gauge in ("01022500", "01547700", "02064000", "03015500"):
            forcing = text(f"daymet/{gauge}_lump_cida_forcing_leap.txt")
            area = float(forcing.splitlines()[2])  # m2
            rows = [line.split() for line in text(f"{gauge}_streamflow_qc.txt").splitlines()]
            # cubic feet a second over the basin, as mm a day
            flow = pl.DataFrame({"date": [date(*map(int, row[1:4])) for row in rows],
                                 "runoff": [float(row[4]) * 0.3048**3 * 86_400_000 / area for row in rows]})
            tables.append(_weather(forcing).join(flow, "date").with_columns(gauge=pl.lit(gauge)))
    table = pl.concat(tables).join(attributes, left_on="gauge", right_on="gauge_id", maintain_order="left")
    last = pl.col("date") >= date(2002, 1, 1)
    table.filter(~last).write_csv(folder / "train.csv")
    early = pl.col("date") >= date(2002, 1, 1) - pl.duration(days=window)
    table.filter(early).write_csv(folder / "valid.csv")
    return folder


def _weather(text: str) -> pl.DataFrame:
    table = _fields("\n".join(text.splitlines()[3:]))
    return table.select(_day(table, "Year", "Mnth", "Day").alias("date"), rain="prcp(mm/day)", radiation="srad(W/m2)",
                        warmest="tmax(C)", coldest="tmin(C)", vapour="vp(Pa)")


def _fields(text: str) -> pl.DataFrame:
    head, *rows = text.splitlines()
    return pl.DataFrame([list(map(float, row.split())) for row in rows], schema=head.split(), orient="row")


def _day(table: pl.DataFrame, year: str = "YR", month: str = "MNTH", day: str = "DY") -> pl.Series:
    return table.select(pl.date(year, month, day)).to_series()
