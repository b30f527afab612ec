//! WEPP's own files, plausible in form and size, and a raster.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use super::rng::Rng;

/// The input files of hillslope `i`: extension and text.
pub fn inputs(i: usize, rng: &mut Rng) -> [(&'static str, String); 5] {
    [
        ("sol", soil(rng)),
        ("slp", slope(rng)),
        ("man", management(rng)),
        ("cli", climate(rng)),
        ("run", run_file(i)),
    ]
}

/// The output files of hillslope `i`: name and text.
pub fn outputs(i: usize, rng: &mut Rng) -> [(String, String); 4] {
    let rows = |columns: usize, rows: usize, rng: &mut Rng| {
        let mut text =
            String::from(" DAY MO YEAR   Precip   Runoff   IR-det    Av-det    Mx-det   Point\n");
        for day in 0..rows {
            write!(
                text,
                "{:4} {:2} {:4}",
                day % 28 + 1,
                day % 12 + 1,
                day / 12 + 1
            )
            .expect("a String takes every write");
            for _ in 0..columns {
                write!(text, " {:9.3}", rng.real(0.0, 99.0)).expect("a String takes every write");
            }
            text.push('\n');
        }
        text
    };
    [
        (format!("H{i}.ebe.dat"), rows(6, 40, rng)),
        (format!("H{i}.loss.dat"), rows(5, 20, rng)),
        (format!("H{i}.pass.dat"), rows(9, 80, rng)),
        (format!("H{i}.wat.dat"), rows(12, 60, rng)),
    ]
}

fn soil(rng: &mut Rng) -> String {
    let mut text = format!(
        "7778\n#\n#            WEPPcloud\n#\n#  Mukey: {}\n#  Major Component: {}\n#\nAny comments:\n1 1\n'{}'\t\t'SL'\t{}\t0.23\t0.75\t{:.1}\t{:.6}\t0.01\n",
        rng.int(400_000, 3_200_000),
        rng.int(10_000_000, 20_000_000),
        rng.pick(&["Tahoma", "Jorge", "Meeks", "Ellispeak"]),
        6,
        rng.real(1e5, 9e5),
        rng.real(1e-4, 9e-4),
    );
    for layer in 1..=6 {
        writeln!(
            text,
            "\t{}\t{:.2}\t{:.4}\t10.0\t{:.4}\t{:.4}\t{:.1}\t{:.1}\t{:.2}\t{:.1}\t{:.1}",
            layer * 200,
            rng.real(0.9, 1.8),
            rng.real(1.0, 400.0),
            rng.real(0.1, 0.3),
            rng.real(0.02, 0.1),
            rng.real(40.0, 80.0),
            rng.real(3.0, 20.0),
            rng.real(0.1, 8.0),
            rng.real(5.0, 20.0),
            rng.real(10.0, 60.0),
        )
        .expect("a String takes every write");
    }
    text.push_str("1 10000.0 0.0036\n");
    text
}

fn slope(rng: &mut Rng) -> String {
    let points = rng.int(20, 90);
    let mut text = format!(
        "97.5\n1\n{:.4} {:.4}\n{points} {:.4}\n",
        rng.real(0.0, 360.0),
        rng.real(20.0, 300.0),
        rng.real(30.0, 400.0)
    );
    for p in 0..points {
        write!(
            text,
            "{:.4}, {:.6} ",
            p as f64 / (points - 1) as f64,
            rng.real(0.01, 0.9)
        )
        .expect("a String takes every write");
    }
    text.push('\n');
    text
}

fn management(rng: &mut Rng) -> String {
    let mut text = String::from(
        "98.4\n#\n#\n#\n#\n1 # number of OFE's\n100 # (total) years in simulation\n\n",
    );
    for section in [
        "Plant",
        "Operation",
        "Initial Conditions",
        "Surface Effects",
        "Contour",
        "Drainage",
        "Yearly",
    ] {
        writeln!(
            text,
            "#{}\n#   {section} Section\n#{}\n1 # number of scenarios",
            "#".repeat(40),
            "#".repeat(40)
        )
        .expect("a String takes every write");
        for _ in 0..5 {
            for _ in 0..10 {
                write!(text, "{:.5} ", rng.real(0.0, 40.0)).expect("a String takes every write");
            }
            text.push('\n');
        }
    }
    text
}

fn climate(rng: &mut Rng) -> String {
    let mut text = String::from(
        "5.32000\n   1   0   0\n  Station:  TAHOE CITY CA                                  CLIGEN VER. 5.32300 -r:    0 -I: 0\n",
    );
    text.push_str(" da mo year  prcp  dur   tp     ip  tmax  tmin  rad  w-vl w-dir  tdew\n             (mm)  (h)               (C)   (C) (l/d) (m/s)(Deg)   (C)\n");
    for day in 0..100 {
        writeln!(
            text,
            " {:2} {:2}    {} {:5.1} {:5.2} {:4.2} {:6.2} {:5.1} {:5.1} {:4.0}. {:4.1} {:4.0}. {:5.1}",
            day % 28 + 1,
            day % 12 + 1,
            day / 12 + 1,
            rng.real(0.0, 60.0),
            rng.real(0.0, 12.0),
            rng.real(0.0, 1.0),
            rng.real(1.0, 9.0),
            rng.real(0.0, 30.0),
            rng.real(-15.0, 10.0),
            rng.real(100.0, 700.0),
            rng.real(0.0, 9.0),
            rng.real(0.0, 360.0),
            rng.real(-15.0, 5.0),
        )
        .expect("a String takes every write");
    }
    text
}

/// The answers that WEPP asks for on its standard input.
fn run_file(i: usize) -> String {
    format!(
        "M\nY\n1\n1\nN\n2\nN\n../output/H{i}.loss.dat\nY\n../output/H{i}.wat.dat\nN\nN\nY\n../output/H{i}.ebe.dat\nN\nN\nY\n../output/H{i}.pass.dat\np{i}.man\np{i}.slp\np{i}.cli\np{i}.sol\n0\n100\n0\n"
    )
}

/// A digital elevation model of about `bytes` bytes: a little-endian, uncompressed GeoTIFF of one
/// 32-bit float per pixel.
pub fn raster(path: &Path, bytes: u64, rng: &mut Rng) -> io::Result<()> {
    const TAGS: u32 = 13;
    const IFD: u32 = 8;
    const EXTRA: u32 = IFD + 2 + TAGS * 12 + 4;
    const DATA: u32 = EXTRA + 24 + 48;

    let side = ((bytes.saturating_sub(u64::from(DATA)) / 4) as f64)
        .sqrt()
        .max(1.0) as u32;
    let length = side * side * 4;
    let mut out = BufWriter::new(File::create(path)?);
    out.write_all(b"II*\0")?;
    out.write_all(&IFD.to_le_bytes())?;
    out.write_all(&(TAGS as u16).to_le_bytes())?;
    const SHORT: u16 = 3;
    const LONG: u16 = 4;
    const DOUBLE: u16 = 12;
    for (tag, kind, count, value) in [
        (256u16, LONG, 1u32, side),     // width
        (257, LONG, 1, side),           // height
        (258, SHORT, 1, 32),            // bits per sample
        (259, SHORT, 1, 1),             // no compression
        (262, SHORT, 1, 1),             // black is zero
        (273, LONG, 1, DATA),           // where the one strip begins
        (277, SHORT, 1, 1),             // samples per pixel
        (278, LONG, 1, side),           // rows per strip
        (279, LONG, 1, length),         // bytes of the strip
        (284, SHORT, 1, 1),             // contiguous planes
        (339, SHORT, 1, 3),             // IEEE floats
        (33550, DOUBLE, 3, EXTRA),      // size of a pixel in metres
        (33922, DOUBLE, 6, EXTRA + 24), // where the first pixel lies
    ] {
        out.write_all(&tag.to_le_bytes())?;
        out.write_all(&kind.to_le_bytes())?;
        out.write_all(&count.to_le_bytes())?;
        out.write_all(&value.to_le_bytes())?;
    }
    out.write_all(&0u32.to_le_bytes())?;
    for number in [
        30.0f64,
        30.0,
        0.0,
        0.0,
        0.0,
        0.0,
        746_128.0,
        4_324_293.0,
        0.0,
    ] {
        out.write_all(&number.to_le_bytes())?;
    }
    let (fx, fy) = (rng.real(0.01, 0.03), rng.real(0.01, 0.03));
    for y in 0..side {
        let ridge = (f64::from(y) * fy).sin();
        for x in 0..side {
            let height = 2_300.0 + 350.0 * (f64::from(x) * fx).sin() * ridge + rng.real(-1.5, 1.5);
            out.write_all(&(height as f32).to_le_bytes())?;
        }
    }
    out.flush()
}
