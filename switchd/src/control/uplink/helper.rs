//! A program that switchd starts and ends.

use std::process::Stdio;

use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::process::{Child, ChildStdin, Command};
use tokio::task::JoinHandle;

use super::{Plan, StartError};

/// A running program. Dropping it kills it.
pub(super) struct Helper {
    child: Child,
    /// The pipe whose end is its end; waiting for the child would close one that is the child's.
    _stdin: Option<ChildStdin>,
    /// Yields its last words at its end.
    words: Option<JoinHandle<String>>,
}

impl Helper {
    /// Starts the plan's program with these arguments and this standard input.
    pub(super) fn start(plan: &Plan, arguments: &[String], stdin: Stdio) -> Result<Self, StartError> {
        let mut child = Command::new(&plan.program)
            .args(arguments)
            .stdin(stdin)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|source| StartError::Run {
                program: plan.program.display().to_string(),
                source,
            })?;
        let words = child.stderr.take().map(|stderr| tokio::spawn(listen(stderr)));
        Ok(Self {
            _stdin: child.stdin.take(),
            child,
            words,
        })
    }

    /// Its process, unless that has ended.
    pub(super) fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// Waits for its end and says how it came.
    pub(super) async fn ended(&mut self) -> String {
        let status = match self.child.wait().await {
            Ok(status) => status.to_string(),
            Err(error) => error.to_string(),
        };
        let words = match self.words.take() {
            Some(words) => words.await.unwrap_or_default(),
            None => String::new(),
        };
        match words.as_str() {
            "" => status,
            words => format!("{status}: {words}"),
        }
    }

    /// Kills it and waits until it is gone.
    pub(super) async fn end(mut self) {
        // It may have ended by itself.
        let _ = self.child.kill().await;
    }
}

/// Reads what a program complains about. Only the log of a debugger is interested in more than the last line.
async fn listen(stderr: impl AsyncRead + Unpin) -> String {
    let mut lines = BufReader::new(stderr).lines();
    let mut last = String::new();
    while let Ok(Some(line)) = lines.next_line().await {
        tracing::debug!("uplink: {line}");
        if !line.trim().is_empty() {
            last = line.trim().to_owned();
        }
    }
    last
}
