//! A gate in a wire: bytes pass while it is open, and wait while it is closed, as in a network that is cut. Nobody is told.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};

/// One way into a server, through a port of its own. Dropping it takes no new connections.
pub struct Gate {
    address: SocketAddr,
    wire: Arc<Wire>,
}

struct Wire {
    open: Mutex<bool>,
    changed: Condvar,
    gone: AtomicBool,
}

impl Wire {
    fn wait_until_open(&self) {
        let open = self.open.lock().expect("nobody panics with the lock");
        drop(self.changed.wait_while(open, |open| !*open).expect("nobody panics with the lock"));
    }

    fn set(&self, open: bool) {
        *self.open.lock().expect("nobody panics with the lock") = open;
        self.changed.notify_all();
    }
}

impl Gate {
    /// A gate before a port of this machine, open.
    pub fn new(target: u16) -> Gate {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port is free");
        let address = listener.local_addr().expect("the port has a number");
        let wire = Arc::new(Wire { open: Mutex::new(true), changed: Condvar::new(), gone: AtomicBool::new(false) });
        let of_thread = Arc::clone(&wire);
        std::thread::spawn(move || {
            for from in listener.incoming().map_while(Result::ok) {
                if of_thread.gone.load(Ordering::SeqCst) {
                    return;
                }
                let wire = Arc::clone(&of_thread);
                std::thread::spawn(move || join(from, target, &wire));
            }
        });
        Gate { address, wire }
    }

    pub fn port(&self) -> u16 {
        self.address.port()
    }

    pub fn set_open(&self, open: bool) {
        self.wire.set(open);
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.wire.gone.store(true, Ordering::SeqCst);
        self.wire.set(true);
        // Wakes the thread that accepts.
        let _ = TcpStream::connect(self.address);
    }
}

/// Joins a connection with a new one to the target. A target that refuses ends it.
fn join(from: TcpStream, target: u16, wire: &Arc<Wire>) {
    wire.wait_until_open();
    let Ok(to) = TcpStream::connect(("127.0.0.1", target)) else { return };
    let ends = (from.try_clone(), to.try_clone());
    let (Ok(from_again), Ok(to_again)) = ends else { return };
    let of_thread = Arc::clone(wire);
    let back = std::thread::spawn(move || pass(to_again, from_again, &of_thread));
    pass(from, to, wire);
    let _ = back.join();
}

fn pass(mut from: TcpStream, mut to: TcpStream, wire: &Wire) {
    let mut bytes = vec![0; 64 << 10];
    while let Ok(count) = from.read(&mut bytes) {
        // The end of a connection waits as well: who is cut off does not hear of it.
        wire.wait_until_open();
        if count == 0 || to.write_all(&bytes[..count]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Both);
    let _ = from.shutdown(Shutdown::Both);
}
