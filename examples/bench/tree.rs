//! The tree that every candidate serves, shaped like a large run: many small files, a large raster, a controller.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use anyhow::Result;

/// Sizes, in bytes, and counts.
#[derive(Clone, Copy)]
pub struct Shape {
    pub small: usize,
    pub middle: usize,
    pub large: usize,
    /// Read from end to end.
    pub raster: usize,
    /// Written from end to end.
    pub written: usize,
    /// Paths whose attributes are asked for.
    pub names: usize,
    /// Files in one directory.
    pub listed: usize,
    /// Files in directories of [`PER_DIRECTORY`].
    pub walked: usize,
    pub created: usize,
    pub renamed: usize,
}

pub const PER_DIRECTORY: usize = 100;

impl Shape {
    /// What `docs/PERFORMANCE.md` shows.
    pub const WHOLE: Self = Self {
        small: crate::SIZE,
        middle: 1 << 20,
        large: 16 << 20,
        raster: 1 << 30,
        written: 512 << 20,
        names: 1000,
        listed: 5000,
        walked: 20_000,
        created: 5000,
        renamed: 500,
    };

    /// An eighth of everything that takes its time.
    pub const QUICK: Self = Self {
        raster: 128 << 20,
        written: 64 << 20,
        listed: 1000,
        walked: 2500,
        created: 600,
        renamed: 60,
        ..Self::WHOLE
    };
}

/// Makes the tree. `document` is the controller's content.
pub fn make(root: &Path, shape: &Shape, document: &[u8]) -> Result<()> {
    fs::create_dir(root)?;
    fs::write(root.join(crate::CONTROLLER), document)?;
    for (name, size) in [
        ("small.txt", shape.small),
        ("middle.bin", shape.middle),
        ("large.bin", shape.large),
        ("raster.bin", shape.raster),
    ] {
        fill(&root.join(name), size)?;
    }
    fs::create_dir(root.join("scratch"))?;
    fs::create_dir(root.join("names"))?;
    for i in 0..shape.names {
        File::create(root.join(format!("names/n{i}")))?;
    }
    fs::create_dir(root.join("listed"))?;
    for i in 0..shape.listed {
        fs::write(root.join(format!("listed/p{i}.sol")), "97.5\n")?;
    }
    fs::create_dir(root.join("walked"))?;
    for i in 0..shape.walked {
        let dir = root.join(format!("walked/{}", i / PER_DIRECTORY));
        if i % PER_DIRECTORY == 0 {
            fs::create_dir(&dir)?;
        }
        // what a hillslope's parameters take, with some text for a compressor to chew on
        let lines: String = (0..60 + i % 40)
            .map(|line| format!("{i} {line} {}\n", i * line))
            .collect();
        fs::write(dir.join(format!("p{i}.man")), lines)?;
    }
    Ok(())
}

fn fill(path: &Path, size: usize) -> Result<()> {
    let mut file = File::create(path)?;
    let block: Vec<u8> = (0..128 << 10).map(|i: u32| ((i * 7) >> 3) as u8).collect();
    let mut left = size;
    while left > 0 {
        let part = left.min(block.len());
        file.write_all(&block[..part])?;
        left -= part;
    }
    Ok(())
}
