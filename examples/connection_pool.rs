//! Shares a pool of five connections among ten workers: a worker that finds none free waits its turn, and a broken
//! connection is replaced.
//!
//! The database is SQLite, so that it needs no server, and the pool is deadpool's. SQLite blocks, so each query runs on
//! a blocking thread (`spawn_blocking`), and takes the connection there.

use std::{
    error::Error as StdError,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use deadpool::managed::{Manager, Metrics, Object, Pool, RecycleError, RecycleResult};
use futures_util::future::try_join_all;
use rusqlite::Connection;
use tokio::task::spawn_blocking;
use tower::{BoxError, ServiceBuilder, ServiceExt};
use ziggurat::{
    Scope,
    resource::{self, ResourceLayer},
    scope::Disposable,
};

/// Creates connections, and checks them before reuse.
struct Sqlite {
    path: PathBuf,
    opened: AtomicU32,
}

impl Manager for Sqlite {
    type Type = Connection;
    type Error = rusqlite::Error;

    async fn create(&self) -> rusqlite::Result<Connection> {
        self.opened.fetch_add(1, Ordering::Relaxed);
        let connection = Connection::open(&self.path)?;
        connection.busy_timeout(Duration::from_secs(10))?;
        Ok(connection)
    }

    async fn recycle(&self, connection: &mut Connection, _: &Metrics) -> RecycleResult<rusqlite::Error> {
        // A call may have been dropped at any await.
        if connection.is_autocommit() { Ok(()) } else { Err(RecycleError::message("a transaction was left open")) }
    }
}

/// The pool belongs to a scope, and closes with it.
fn pool(path: PathBuf) -> Disposable {
    let manager = Sqlite { path, opened: AtomicU32::new(0) };
    let set_up = async move |_: Scope| Pool::<_>::builder(manager).max_size(5).build();
    Disposable::new(set_up, async |pool: Arc<Pool<Sqlite>>| pool.close())
}

/// Uses the connection that is lent to the call.
async fn visit(worker: u32) -> Result<u32, BoxError> {
    let db = resource::current::<Object<Sqlite>>()?.get()?;
    let row = spawn_blocking(move || {
        db.execute("INSERT INTO visits VALUES (?1)", [worker])?;
        db.query_row("SELECT count(*) FROM visits WHERE worker = ?1", [worker], |row| row.get(0))
    });
    Ok(row.await??)
}

/// Finds its connection broken, and removes it from the pool.
async fn give_up(_worker: u32) -> Result<u32, BoxError> {
    resource::current::<Object<Sqlite>>()?.get()?.discard();
    Err("the connection broke".into())
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn StdError + Send + Sync>> {
    let path = std::env::temp_dir().join(format!("ziggurat-connection-pool-{}.sqlite", std::process::id()));
    Connection::open(&path)?.execute_batch("CREATE TABLE visits (worker INTEGER)")?;
    let app = Scope::root("app").disposable(pool(path.clone())).open().await?;
    let pool = app.require::<Pool<Sqlite>>()?;

    let stack =
        ServiceBuilder::new().layer(ResourceLayer::deadpool(&pool).max_wait(Duration::from_secs(60)).named("db"));

    // Ten concurrent calls: five of them wait, and none fails.
    let workers = stack.clone().service_fn(visit);
    let visits = try_join_all((0..10).map(|worker| workers.clone().oneshot(worker))).await?;
    assert_eq!(visits, [1; 10]);
    assert_eq!((pool.status().available, pool.manager().opened.load(Ordering::Relaxed)), (5, 5));

    // A broken connection is not used again: four remain, and a fifth is created on demand.
    assert!(stack.service_fn(give_up).oneshot(0).await.is_err());
    assert_eq!(pool.status().size, 4);
    try_join_all((0..10).map(|worker| workers.clone().oneshot(worker))).await?;
    assert_eq!((pool.status().available, pool.manager().opened.load(Ordering::Relaxed)), (5, 6));

    // The scope closes the pool, and later callers get an error.
    app.close().await?;
    let error = workers.oneshot(0).await.err().map(|error| error.to_string());
    assert_eq!(error.as_deref(), Some("resource `db`: no resource available: Pool has been closed"));

    std::fs::remove_file(path)?;
    println!("ten workers, five connections, {} visits, and one connection replaced", 2 * visits.len());
    Ok(())
}
