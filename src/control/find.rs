//! From a path to the controllers it means.

use std::ffi::{OsStr, OsString};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use super::{Context, Failure};
use crate::error::{Errno, Error};
use crate::fs::walk::Entered;
use crate::nodb::Nodb;
use crate::nodb::controller::Controller;
use crate::node::is_controller;

/// As the kernel's own limit.
const MOST_LINKS: usize = 40;

/// What a path means.
#[derive(Debug)]
pub enum Found {
    Controller(Named),
    /// A directory: of one run, or of many.
    Run(Arc<Entered>),
}

/// A controller, whether or not there is a file.
#[derive(Debug)]
pub struct Named {
    pub dir: Arc<Entered>,
    pub controller: Arc<Controller>,
}

impl Named {
    fn new(nodb: &Nodb, dir: Arc<Entered>, name: &OsStr) -> Self {
        let controller = nodb.controllers.at(&dir.place(name));
        Self { dir, controller }
    }

    /// Its path below the source, for showing.
    pub fn path(&self) -> String {
        let dir = self.dir.path().unwrap_or_default();
        let path = dir.join(&self.controller.place.name);
        path.to_string_lossy().into_owned()
    }
}

impl Context {
    /// What `path` means, symlinks followed.
    ///
    /// # Errors
    /// It does not exist, leads outside the source, or is a file that is no controller.
    pub fn find(&self, path: &str) -> Result<Found, Failure> {
        let fs = self.fs()?;
        let mut dir = Entered::root(&fs)?;
        let mut left = vec![PathBuf::from(path)];
        let mut links = 0;
        while let Some(part) = left.pop() {
            let mut components = part.components();
            let Some(component) = components.next() else {
                continue;
            };
            left.push(components.as_path().to_owned());
            let name = match component {
                Component::Normal(name) => name,
                Component::ParentDir => {
                    dir = dir.up();
                    continue;
                }
                Component::RootDir | Component::CurDir | Component::Prefix(_) => continue,
            };
            let last = left.iter().all(|part| part.as_os_str().is_empty());
            match dir.stat(name) {
                Ok(attr) if attr.file_type().is_symlink() => {
                    links += 1;
                    if links > MOST_LINKS {
                        return Err(Errno::LOOP.into());
                    }
                    let target = dir.readlink(name)?;
                    if target.is_absolute() {
                        left.push(self.within(&target)?);
                        dir = Entered::root(&fs)?;
                    } else {
                        left.push(target);
                    }
                }
                Ok(attr) if attr.is_file() && last && !is_controller(name) => {
                    return Err(Failure::new(
                        format!("{path} is no controller"),
                        "name a .nodb file, or the directory of a run",
                    ));
                }
                Ok(attr) if attr.is_file() && last => {
                    return Ok(Found::Controller(Named::new(fs.nodb(), dir, name)));
                }
                Err(Error::Source(Errno::NOENT)) if last && is_controller(name) => {
                    return Ok(Found::Controller(Named::new(fs.nodb(), dir, name)));
                }
                Ok(_) => dir = dir.down(name)?,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(Found::Run(dir))
    }

    /// The controller that `path` means.
    ///
    /// # Errors
    /// As [`Context::find`]; it is a directory.
    pub fn find_one(&self, path: &str) -> Result<Named, Failure> {
        match self.find(path)? {
            Found::Controller(named) => Ok(named),
            Found::Run(_) => Err(Failure::new(
                format!(
                    "{} is a directory",
                    if path.is_empty() { "." } else { path }
                ),
                "name one .nodb file",
            )),
        }
    }

    /// Where an absolute symlink leads, below the source.
    fn within(&self, target: &Path) -> Result<PathBuf, Failure> {
        let fs = self.fs()?;
        let roots = [
            self.mountpoint.as_deref(),
            Some(fs.nodb().key_root()),
            Some(&self.source),
        ];
        let mut below = roots.into_iter().flatten();
        let below = below.find_map(|root| target.strip_prefix(root).ok());
        below.map(Path::to_owned).ok_or_else(|| {
            Failure::new(
                format!("a symlink leads outside, to {}", target.display()),
                "name the file it leads to, or a --source that contains both",
            )
        })
    }

    /// Calls `each` with every controller that `found` means: itself, or all in the directory and
    /// below it. `enter` is called with every directory and its names.
    pub fn all(
        &self,
        found: Found,
        mut enter: impl FnMut(&Arc<Entered>, &[OsString]) -> Result<(), Failure>,
        mut each: impl FnMut(Named) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let fs = self.fs()?;
        let mut left = match found {
            Found::Controller(named) => return each(named),
            Found::Run(dir) => vec![dir],
        };
        while let Some(dir) = left.pop() {
            let names = match dir.list() {
                Ok(names) => names,
                // gone since its own directory was listed
                Err(Error::Source(Errno::NOENT | Errno::STALE)) => continue,
                Err(error) => return Err(error.into()),
            };
            enter(&dir, &names)?;
            let mut below = Vec::new();
            for name in &names {
                match dir.stat(name) {
                    Ok(attr) if attr.is_dir() => below.extend(dir.down(name).ok()),
                    Ok(attr) if attr.is_file() && is_controller(name) => {
                        each(Named::new(fs.nodb(), dir.clone(), name))?;
                    }
                    // a child run's symlink to a controller is that controller under another name
                    _ => {}
                }
            }
            left.extend(below.into_iter().rev());
        }
        Ok(())
    }
}
