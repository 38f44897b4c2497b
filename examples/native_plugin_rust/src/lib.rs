//! `rm_plugin.h` in Rust, without dependencies: a model that answers with the line that it knows best, word for word.

mod json;
mod model;

use json::{parse, quote, Value};
use model::Model;
use std::cell::RefCell;
use std::collections::HashSet;
use std::ffi::{c_void, CStr, CString};
use std::fs;
use std::os::raw::c_char;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::path::Path;
use std::sync::{Condvar, Mutex};
use std::time::Duration;

const ABI_VERSION: u32 = 1 << 16;
const BAD_INPUT: i32 = 64;
const ARTIFACT_MISMATCH: i32 = 65;
const DEVICE_MISSING: i32 = 66;
const TOOLCHAIN_FAILURE: i32 = 70;
const TRANSIENT: i32 = 75;
const FORMAT: &str = "line-recall";
const FILE: &str = "lines.txt";

type OnTokens = unsafe extern "C" fn(*mut c_void, *const u32, usize) -> i32;
type Failure = (i32, String);

pub struct Session {
    model: Model,
    pace: Duration,
    cancelled: Mutex<HashSet<u64>>,
    changed: Condvar,
}

thread_local! {
    static LAST_ERROR: RefCell<CString> = RefCell::new(CString::default());
}

/// Runs a function of the interface: what it returns, fails with or panics with, as C wants it.
fn answer(out: *mut *mut c_char, work: impl FnOnce() -> Result<String, Failure>) -> i32 {
    let outcome = catch_unwind(AssertUnwindSafe(work))
        .unwrap_or_else(|_| Err((TOOLCHAIN_FAILURE, "line-recall failed where it should not".to_string())));
    match outcome {
        Ok(text) => {
            unsafe { *out = CString::new(text).unwrap_or_default().into_raw() };
            0
        }
        Err((code, message)) => {
            let message = CString::new(message.replace('\0', " ")).unwrap_or_default();
            LAST_ERROR.with(|last| *last.borrow_mut() = message);
            code
        }
    }
}

unsafe fn read(request: *const c_char) -> Result<Value, Failure> {
    let text = CStr::from_ptr(request).to_str().map_err(|error| (BAD_INPUT, error.to_string()))?;
    parse(text).map_err(|message| (BAD_INPUT, message))
}

fn path_in<'a>(request: &'a Value, name: &str) -> Result<&'a Path, Failure> {
    let path = request.member(name).text().map(Path::new);
    path.ok_or_else(|| (BAD_INPUT, format!("the request names no {}", name)))
}

fn tokens_in(list: &Value) -> Vec<u32> {
    list.list().iter().filter_map(Value::number).map(|number| number as u32).collect()
}

#[no_mangle]
pub extern "C" fn rma_abi_version() -> u32 {
    ABI_VERSION
}

#[no_mangle]
pub unsafe extern "C" fn rma_info(out: *mut *mut c_char) -> i32 {
    answer(out, || {
        Ok(format!(
            "{{\"name\":\"line-recall\",\"version\":{version},\"display_name\":\"Line recall (Rust)\",\
             \"description\":\"Answers with the line that shares the most words with the question\",\
             \"author\":\"RM Abstract\",\"device_types\":[\"cpu\"],\"formats\":[\"{format}\"],\"priority\":0,\
             \"min_host_version\":\"0.1.0\",\
             \"compiler\":{{\"name\":\"line-recall\",\"version\":{version},\"format\":\"{format}\"}}}}",
            version = quote(env!("CARGO_PKG_VERSION")),
            format = FORMAT
        ))
    })
}

#[no_mangle]
pub unsafe extern "C" fn rma_probe(request: *const c_char, out: *mut *mut c_char) -> i32 {
    answer(out, || {
        let request = read(request)?;
        if request.member("devices").list().iter().any(|device| device.text() != Some("cpu")) {
            return Err((DEVICE_MISSING, "line-recall runs on the device cpu alone".to_string()));
        }
        Ok("{\"devices\":[{\"id\":\"cpu\",\"type\":\"cpu\",\"attributes\":{}}]}".to_string())
    })
}

#[no_mangle]
pub unsafe extern "C" fn rma_compile(request: *const c_char, out: *mut *mut c_char) -> i32 {
    answer(out, || {
        let request = read(request)?;
        let (from, to) = (path_in(&request, "model")?.join(FILE), path_in(&request, "output")?.join(FILE));
        let text = fs::read_to_string(&from).map_err(|error| (BAD_INPUT, format!("{}: {}", from.display(), error)))?;
        let lines = Model::normal(&text);
        if lines.is_empty() {
            return Err((BAD_INPUT, format!("{} has no line with a word in it", from.display())));
        }
        fs::write(&to, lines.join("\n")).map_err(|error| (TRANSIENT, format!("{}: {}", to.display(), error)))?;
        Ok(format!("{{\"format\":\"{}\",\"versions\":{{\"line-recall\":{}}}}}", FORMAT, quote(env!("CARGO_PKG_VERSION"))))
    })
}

#[no_mangle]
pub unsafe extern "C" fn rma_open(request: *const c_char, session: *mut *mut Session, out: *mut *mut c_char) -> i32 {
    answer(out, || {
        let request = read(request)?;
        let path = path_in(&request, "artifact")?.join(FILE);
        let text = fs::read_to_string(&path)
            .map_err(|error| (ARTIFACT_MISMATCH, format!("the artifact has no {} that can be read: {}", FILE, error)))?;
        let pace = match request.member("options").member("milliseconds_per_token").text() {
            Some(text) => text.parse().map_err(|_| (BAD_INPUT, format!("{:?} is no number of milliseconds", text)))?,
            None => 0,
        };
        let model = Model::new(&text);
        let facts = format!(
            "{{\"max_sequence_length\":4096,\"vocabulary_size\":{},\"max_concurrent_runs\":4,\
             \"temperature\":0.0,\"tokenizer\":\"library\"}}",
            model.vocabulary()
        );
        let opened = Session {
            model,
            pace: Duration::from_millis(pace),
            cancelled: Mutex::new(HashSet::new()),
            changed: Condvar::new(),
        };
        *session = Box::into_raw(Box::new(opened));
        Ok(facts)
    })
}

impl Session {
    /// Waits as long as a token takes; true where the run was cancelled meanwhile or before.
    fn wait(&self, run: u64) -> bool {
        let cancelled = self.cancelled.lock().unwrap();
        let until = |runs: &mut HashSet<u64>| !runs.contains(&run);
        let (runs, _) = self.changed.wait_timeout_while(cancelled, self.pace, until).unwrap();
        runs.contains(&run)
    }

    fn generate(&self, run: u64, request: &Value, mut pass_on: impl FnMut(u32) -> bool) -> String {
        let most = request.member("max_tokens").number().unwrap_or(16.0) as usize;
        let ignore_end = *request.member("ignore_eos") == Value::Bool(true);
        let line = self.model.answer(&tokens_in(request.member("prompt")));
        let mut finish = "length";
        for (made, token) in line.iter().cycle().enumerate() {
            if made == most {
                break;
            }
            if self.wait(run) || !pass_on(*token) {
                finish = "cancelled";
                break;
            }
            if *token == self.model.end() && !ignore_end {
                finish = "stop";
                break;
            }
        }
        self.cancelled.lock().unwrap().remove(&run);
        format!("{{\"finish\":\"{}\"}}", finish)
    }
}

#[no_mangle]
pub unsafe extern "C" fn rma_run(
    session: *mut Session,
    run: u64,
    request: *const c_char,
    on_tokens: OnTokens,
    user: *mut c_void,
    out: *mut *mut c_char,
) -> i32 {
    let session = &*session;
    answer(out, || {
        let request = read(request)?;
        match request.member("task").text() {
            Some("generate") => Ok(session.generate(run, &request, |token| on_tokens(user, &token, 1) == 0)),
            Some("encode") => {
                let tokens = session.model.encode(request.member("text").text().unwrap_or_default());
                Ok(format!("{{\"tokens\":{:?}}}", tokens))
            }
            Some("decode") => {
                let text = session.model.decode(&tokens_in(request.member("tokens")));
                Ok(format!("{{\"text\":{}}}", quote(&text)))
            }
            Some("chat") => {
                let messages = request.member("messages").list();
                let last = messages.last().and_then(|message| message.member("content").text());
                let last = last.ok_or_else(|| (BAD_INPUT, "a chat needs a message with a text in it".to_string()))?;
                Ok(format!("{{\"text\":{}}}", quote(last)))
            }
            other => Err((BAD_INPUT, format!("line-recall does not know the task {}", other.unwrap_or("without a name")))),
        }
    })
}

#[no_mangle]
pub unsafe extern "C" fn rma_cancel(session: *mut Session, run: u64) -> i32 {
    (*session).cancelled.lock().unwrap().insert(run);
    (*session).changed.notify_all();
    0
}

#[no_mangle]
pub unsafe extern "C" fn rma_close(session: *mut Session) -> i32 {
    drop(Box::from_raw(session));
    0
}

#[no_mangle]
pub extern "C" fn rma_last_error() -> *const c_char {
    LAST_ERROR.with(|last| last.borrow().as_ptr())
}

#[no_mangle]
pub unsafe extern "C" fn rma_free(text: *mut c_char) {
    if !text.is_null() {
        drop(CString::from_raw(text));
    }
}
