//! A v5 guest as somebody else wrote it: Python's own HTTP server with the log files of section 10.

use std::process::Stdio;

use tempfile::TempDir;
use tokio::io::AsyncBufReadExt;
use tokio::process::Command;

use super::*;

const GUEST: &str = r#"
import http.server, os, sys
class Guest(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def log_message(self, *args): pass
    def answer(self):
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        right = self.headers["x-open-runtimes-secret"] == "s3cret"
        with open(os.path.join(sys.argv[1], "a1_logs.log"), "a") as logs:
            logs.write(self.headers["x-open-runtimes-logging"] + " " + self.headers["x-open-runtimes-timeout"] + "\n")
        out = self.command.encode() + b" " + self.path.encode() + b" " + body
        self.send_response(200 if right else 401)
        self.send_header("Content-Length", str(len(out)))
        self.send_header("Set-Cookie", "a=1")
        self.send_header("Set-Cookie", "b=2")
        self.send_header("X-Open-Runtimes-Log-Id", "a1")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(out)
    do_GET = do_POST = do_PUT = do_HEAD = answer
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Guest)
print(server.server_address[1], flush=True)
server.serve_forever()
"#;

#[tokio::test]
async fn a_v5_guest_in_python() {
    let folder = TempDir::new().unwrap();
    let mut python = Command::new("python3")
        .args(["-c", GUEST, folder.path().to_str().unwrap()])
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("this test needs python3");
    let mut out = tokio::io::BufReader::new(python.stdout.take().unwrap()).lines();
    let port: u16 = out.next_line().await.unwrap().unwrap().parse().unwrap();
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let target = Target {
        address,
        profile: Profile::V5,
        secret: Secret::new("s3cret"),
        logs: Some(LogFolder::new(folder.path())),
        alive: Alive::new(|| true),
    };
    let client = Client::default();
    assert!(client.listening(address, Instant::now() + Duration::from_secs(30)).await);
    for (method, body, expected) in [
        (Method::GET, "", "GET /p?q=1 "),
        (Method::POST, "0", "POST /p?q=1 0"),
        (Method::HEAD, "", ""),
        (Method::PUT, "ä", "PUT /p?q=1 ä"),
    ] {
        let request = Outgoing { path: "p?q=1".into(), ..posting(method, body) };
        let answer = client.send(&target, request).await.unwrap();
        assert_eq!(answer.status, 200);
        assert_eq!(answer.headers.get_all("set-cookie").iter().collect::<Vec<_>>(), ["a=1", "b=2"]);
        assert_eq!(whole(answer.body).await.unwrap(), expected.as_bytes());
        assert_eq!(answer.lines.await.0, "enabled 30\n");
        assert_eq!(client.kept.len(), 1);
    }
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    let stranger = Target { secret: Secret::new("other"), ..target };
    assert_eq!(client.send(&stranger, get("/")).await.unwrap().status, 401);
    python.kill().await.unwrap();
}
