//! No network unless asked; loopback of one's own; no socket of the host's.

use std::io::Write;
use std::net::TcpListener;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};

use serde_json::json;

use crate::support::*;

/// A listener on the host that answers one connection.
fn host_listener() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            // The client may have gone away.
            if { stream }.write_all(b"host").is_err() {}
        }
    });
    port
}

fn connect(port: u16) -> String {
    format!("print(attempt(lambda: socket.create_connection(('127.0.0.1', {port}), 5)))")
}

#[test]
fn the_hosts_network_is_reached_only_when_asked_for() {
    let port = host_listener();
    for caller in callers() {
        let run = |changes| python(caller, &profile(changes), &connect(port));
        let Some(open) = run(json!({"network_isolation": false})) else { return };
        open.expect_stdout("ok");
        // ECONNREFUSED: the sandbox's own loopback, where nobody listens. EACCES: Landlock.
        run(json!({})).unwrap().expect_stdout("ECONNREFUSED");
        run(json!({"network": "none"})).unwrap().expect_stdout("EACCES");
        run(json!({"network": "none", "landlock": "off"})).unwrap().expect_stdout("ECONNREFUSED");
    }
}

#[test]
fn loopback_of_its_own_is_up() {
    let program = "
s = socket.create_server(('127.0.0.1', 0))
c = socket.create_connection(s.getsockname())
s.accept()[0].sendall(b'x')
print(c.recv(1))
print(attempt(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).connect(('198.51.100.1', 9))))
";
    for caller in callers() {
        let Some(result) = python(caller, &base_profile(), program) else { return };
        result.expect_stdout("b'x'").expect_stdout("ENETUNREACH");
    }
}

#[test]
fn abstract_sockets_of_the_host_are_out_of_reach() {
    let name = format!("shannot-test-{}", std::process::id());
    let _listener = UnixListener::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
    let program = format!("print(attempt(lambda: socket.socket(socket.AF_UNIX).connect('\\0{name}')))");
    for caller in callers() {
        let run = |changes| python(caller, &profile(changes), &program);
        let Some(result) = run(json!({})) else { return };
        // The network namespace alone: abstract names belong to it.
        result.expect_stdout("ECONNREFUSED");
        // Landlock's scope alone.
        run(json!({"network_isolation": false})).unwrap().expect_stdout("EPERM");
        // Neither.
        run(json!({"network_isolation": false, "landlock": "off"})).unwrap().expect_stdout("ok");
    }
}

#[test]
fn families_that_ignore_namespaces_are_refused() {
    let program = "
for family in (socket.AF_VSOCK, socket.AF_PACKET, 38):
    print(attempt(lambda: socket.socket(family, socket.SOCK_STREAM)))
print(attempt(lambda: socket.socket(socket.AF_UNIX)))
";
    for caller in callers() {
        let Some(result) = python(caller, &base_profile(), program) else { return };
        assert_eq!(result.stdout, "EAFNOSUPPORT\nEAFNOSUPPORT\nEAFNOSUPPORT\nok\n");
    }
}
