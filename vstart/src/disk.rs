//! Files that are disks of machines: made, looked at, merged. Holes stay holes.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;

use crate::cow::{self, Header};

/// Why a disk cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// The system refuses.
    #[error("cannot {0} {path}", path = .1.display())]
    Io(&'static str, PathBuf, #[source] io::Error),
    /// Somebody has it.
    #[error("cannot use {}: a machine is using it", .0.display())]
    Busy(PathBuf),
    /// It is something else.
    #[error("cannot use {} for changes: it is something else than a COW file", .0.display())]
    NotCow(PathBuf),
    /// The model is not what it was.
    #[error(
        "cannot use {changes} with model {model}: the model has changed since\n\
         hint: 'touch -d @{modified} {model}' puts that right if it is the same all but for its time; \
         'vdisk merge --force' does not care",
        changes = .changes.display(), model = .model.display()
    )]
    Changed {
        /// The file with the changes.
        changes: PathBuf,
        /// The model.
        model: PathBuf,
        /// What its time was, in seconds since 1970.
        modified: u32,
    },
    /// The name of the model does not fit.
    #[error("cannot make changes to {}: its name is too long", .0.display())]
    TooLong(PathBuf),
    /// The user has had enough.
    #[error("interrupted")]
    Interrupted,
}

type Result<T> = std::result::Result<T, DiskError>;

/// An open disk. Machines lock theirs, so we do, too.
#[derive(Debug)]
pub struct Disk {
    /// Its name.
    pub path: PathBuf,
    file: File,
    /// What it is a layer over, if it is one.
    pub header: Option<Header>,
}

/// How far something is, and whether to go on.
pub trait Watch {
    /// So many bytes more are done; false if that is enough.
    fn advance(&mut self, bytes: u64) -> bool;
}

impl Disk {
    /// Opens a disk to look at it: it may be in use.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn look(path: &Path) -> Result<Self> {
        Self::open(path, false)
    }

    /// Opens a disk that nobody may write to meanwhile; `writable` if nobody may read either.
    ///
    /// # Errors
    /// When it cannot be opened, or a machine uses it.
    pub fn take(path: &Path, writable: bool) -> Result<Self> {
        let disk = Self::open(path, writable)?;
        lock(&disk.file, writable).map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::PermissionDenied => DiskError::Busy(path.to_owned()),
            _ => DiskError::Io("lock", path.to_owned(), error),
        })?;
        Ok(disk)
    }

    /// A file of ours that is to become a disk.
    pub const fn new(path: PathBuf, file: File) -> Self {
        Self {
            path,
            file,
            header: None,
        }
    }

    fn open(path: &Path, writable: bool) -> Result<Self> {
        let error = |what| move |error| DiskError::Io(what, path.to_owned(), error);
        let mut file = OpenOptions::new()
            .read(true)
            .write(writable)
            .open(path)
            .map_err(error("open"))?;
        let mut start = Vec::new();
        let limit = u64::try_from(cow::HEADER_BYTES).unwrap_or(u64::MAX);
        (&mut file)
            .take(limit)
            .read_to_end(&mut start)
            .map_err(error("read"))?;
        Ok(Self {
            path: path.to_owned(),
            file,
            header: cow::parse(&start),
        })
    }

    /// The header of a file of changes.
    ///
    /// # Errors
    /// When the file is something else.
    pub fn changes(&self) -> Result<&Header> {
        self.header
            .as_ref()
            .ok_or_else(|| DiskError::NotCow(self.path.clone()))
    }

    /// Its size, and what of that is on the host's disk; in bytes.
    ///
    /// # Errors
    /// When the system does not tell.
    pub fn size(&self) -> Result<(u64, u64)> {
        let data = self.file.metadata().map_err(self.failed("look at"))?;
        Ok((data.len(), data.blocks() * 512))
    }

    /// The first bytes of it.
    pub fn start(&self, buffer: &mut [u8]) -> io::Result<usize> {
        self.file.read_at(buffer, 0)
    }

    /// Number of sectors that have been changed.
    ///
    /// # Errors
    /// When the file is no file of changes, or cannot be read.
    pub fn changed_sectors(&self) -> Result<u64> {
        let mut changed = 0;
        self.for_each_run(|_, sectors| {
            changed += sectors;
            Ok(())
        })?;
        Ok(changed)
    }

    /// Writes what has been changed over another file.
    ///
    /// # Errors
    /// When a file cannot be used, or it is enough.
    pub fn write_changes(&self, to: &Self, watch: &mut dyn Watch) -> Result<()> {
        let header = self.changes()?.clone();
        let sector = u64::from(header.sector);
        self.for_each_run(|first, sectors| {
            let (from, length) = (first * sector, sectors * sector);
            // The last sector of a model may be less than whole.
            let length = length.min(header.bytes.saturating_sub(from));
            self.copy(header.data_at() + from, to, from, length, watch)
        })
    }

    /// Copies all of it into an empty file, except its holes.
    ///
    /// # Errors
    /// When a file cannot be used, or it is enough.
    pub fn copy_to(&self, to: &Self, watch: &mut dyn Watch) -> Result<()> {
        let bytes = self.size()?.0;
        to.file.set_len(bytes).map_err(to.failed("lengthen"))?;
        let mut at = 0;
        while at < bytes {
            let data = self.seek(SeekWhere::Data, at)?.unwrap_or(bytes);
            if !watch.advance(data - at) {
                return Err(DiskError::Interrupted);
            }
            let hole = self.seek(SeekWhere::Hole, data)?.unwrap_or(bytes);
            self.copy(data, to, data, hole - data, watch)?;
            at = hole;
        }
        Ok(())
    }

    /// Has everything written to the host's disk.
    ///
    /// # Errors
    /// When that fails.
    pub fn sync(&self) -> Result<()> {
        self.file.sync_all().map_err(self.failed("write"))
    }

    fn copy(
        &self,
        mut at: u64,
        to: &Self,
        mut target: u64,
        mut length: u64,
        watch: &mut dyn Watch,
    ) -> Result<()> {
        let mut buffer = vec![0; PIECE];
        while length > 0 {
            let piece = usize::try_from(length).unwrap_or(PIECE).min(PIECE);
            self.file
                .read_exact_at(&mut buffer[..piece], at)
                .map_err(self.failed("read"))?;
            to.file
                .write_all_at(&buffer[..piece], target)
                .map_err(to.failed("write"))?;
            let done = u64::try_from(piece).unwrap_or(u64::MAX);
            (at, target, length) = (at + done, target + done, length - done);
            if !watch.advance(done) {
                return Err(DiskError::Interrupted);
            }
        }
        Ok(())
    }

    fn for_each_run(&self, mut work: impl FnMut(u64, u64) -> Result<()>) -> Result<()> {
        let header = self.changes()?;
        let (mut at, mut left) = (header.bitmap_at(), header.bitmap_bytes());
        let (mut first, mut bitmap) = (0, vec![0; PIECE]);
        while left > 0 {
            let piece = usize::try_from(left).unwrap_or(PIECE).min(PIECE);
            self.file
                .read_exact_at(&mut bitmap[..piece], at)
                .map_err(self.failed("read"))?;
            for (sector, sectors) in cow::changed(&bitmap[..piece], first) {
                // Bits behind the last sector mean nothing.
                let sectors = sectors.min(header.sectors().saturating_sub(sector));
                work(sector, sectors)?;
            }
            let done = u64::try_from(piece).unwrap_or(u64::MAX);
            (at, left, first) = (at + done, left - done, first + done * 8);
        }
        Ok(())
    }

    /// The next data or hole; none if there is no more.
    fn seek(&self, what: SeekWhere, at: u64) -> Result<Option<u64>> {
        use nix::unistd::{Whence, lseek64};
        let whence = match what {
            SeekWhere::Data => Whence::SeekData,
            SeekWhere::Hole => Whence::SeekHole,
        };
        let offset = i64::try_from(at).unwrap_or(i64::MAX);
        match lseek64(&self.file, offset, whence) {
            Ok(found) => Ok(u64::try_from(found).ok()),
            Err(nix::errno::Errno::ENXIO) => Ok(None),
            Err(error) => Err(DiskError::Io("read", self.path.clone(), error.into())),
        }
    }

    fn failed(&self, what: &'static str) -> impl FnOnce(io::Error) -> DiskError {
        let path = self.path.clone();
        move |error| DiskError::Io(what, path, error)
    }
}

#[derive(Clone, Copy)]
enum SeekWhere {
    Data,
    Hole,
}

/// What a new file of changes to a model says about it.
///
/// # Errors
/// When the model cannot be looked at.
pub fn header_of(model: &Path) -> Result<Header> {
    let error = |error| DiskError::Io("look at", model.to_owned(), error);
    let model = model.canonicalize().map_err(error)?;
    let data = std::fs::metadata(&model).map_err(error)?;
    // Times after 2106 are the kernel's problem as well.
    let modified = u32::try_from(data.mtime()).unwrap_or(u32::MAX);
    Header::new(model.clone(), modified, data.len()).ok_or(DiskError::TooLong(model))
}

/// Makes a file of changes without any.
///
/// # Errors
/// When it cannot be written.
pub fn make_changes(file: &mut File, path: &Path, header: &Header) -> Result<()> {
    file.seek(SeekFrom::Start(0))
        .and_then(|_| file.write_all(&header.encode()))
        .and_then(|()| file.set_len(header.data_at() + header.bytes))
        .map_err(|error| DiskError::Io("write", path.to_owned(), error))
}

/// Checks that changes belong to a model as it is.
///
/// # Errors
/// When the model has changed since, which the kernel would refuse as well.
pub fn check_unchanged(changes: &Path, header: &Header, model: &Path) -> Result<()> {
    let now = header_of(model)?;
    if (now.modified, now.bytes) == (header.modified, header.bytes) {
        return Ok(());
    }
    Err(DiskError::Changed {
        changes: changes.to_owned(),
        model: model.to_owned(),
        modified: header.modified,
    })
}

/// Takes the lock that UML kernels take, for as long as the file is open.
fn lock(file: &File, exclusive: bool) -> io::Result<()> {
    let kind = if exclusive { libc::F_WRLCK } else { libc::F_RDLCK };
    let whole = libc::flock {
        l_type: i16::try_from(kind).unwrap_or_default(),
        l_whence: i16::try_from(libc::SEEK_SET).unwrap_or_default(),
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    fcntl(file, FcntlArg::F_OFD_SETLK(&whole))?;
    Ok(())
}

/// Bytes read at once.
const PIECE: usize = 1 << 20;
