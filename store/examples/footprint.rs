//! Fills a store and prints time and memory: `footprint <backend> <folder> <records>`; run again to see a reopen.

use std::path::Path;
use std::time::Instant;

use roble_store::{Envelope, OpenOptions, Scope, Store, Transaction, open};

fn resident_kb() -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmRSS"));
    line.map_or_else(|| "unknown".into(), |line| line.replace(char::is_whitespace, ""))
}

#[tokio::main(worker_threads = 1)]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, kind, folder, records] = arguments.as_slice() else {
        return Err("usage: footprint <backend> <folder> <records>".into());
    };
    println!("before open: {}", resident_kb());
    let start = Instant::now();
    let opened = open(kind.parse()?, Path::new(folder), &OpenOptions::default()).await?;
    println!("open {opened:?}: {:?}, {}", start.elapsed(), resident_kb());
    let (scope, start) = (Scope::organization("acme")?, Instant::now());
    let records: u64 = records.parse()?;
    for first in (0..records).step_by(100) {
        let mut transaction = Transaction::new();
        for id in first..records.min(first + 100) {
            let key = scope.key("service", &format!("{:016x}", id.wrapping_mul(0x9E37_79B9_7F4A_7C15)))?;
            transaction = transaction.put(key, Envelope::new(1, vec![b'x'; 230]));
        }
        opened.store.commit(transaction).await?;
    }
    println!("{records} records by 100: {:?}, {}", start.elapsed(), resident_kb());
    let start = Instant::now();
    for id in 0..200u64 {
        let key = scope.key("one", &id.to_string())?;
        opened
            .store
            .commit(Transaction::new().put(key, Envelope::new(1, vec![b'x'; 230])))
            .await?;
    }
    println!("commit of one record: {:?}", start.elapsed() / 200);
    opened.store.close().await?;
    Ok(())
}
