//! Tasks that keep a port of a domain alive: they end with the port or the domain, and what they look after goes first.

use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// A task that looks after a port.
pub(crate) struct Attendant {
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Attendant {
    /// Starts one. It is to end, and its port with it, when the receiver is told.
    pub(crate) fn start<F>(task: impl FnOnce(oneshot::Receiver<()>) -> F) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let (stop, stopped) = oneshot::channel();
        Self {
            stop,
            task: tokio::spawn(task(stopped)),
        }
    }

    /// Has it end, and waits until nothing of it is left.
    pub(crate) async fn end(self) {
        let _ = self.stop.send(());
        let _ = self.task.await;
    }
}
