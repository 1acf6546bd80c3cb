//! A pool of connections to a real database: SQLite, in a deadpool.

use std::{
    convert::Infallible,
    future::{pending, ready},
    path::PathBuf,
    sync::{
        Arc, Barrier, Mutex,
        atomic::{AtomicU32, AtomicUsize, Ordering},
    },
    task::Poll,
};

use deadpool::{
    Runtime,
    managed::{Manager, Metrics, Object, Pool, RecycleError, RecycleResult, Timeouts},
};
use futures_util::future::join_all;
use rusqlite::Connection;
use tokio::{sync::oneshot, task::spawn_blocking};
use tower::{Layer, ServiceBuilder, ServiceExt, service_fn};
use ziggurat::{
    Error, Reason, Scope,
    context::ContextLayer,
    resource::{self, Held, Lent, ResourceLayer},
    scope::Disposable,
    testing::TestTask,
};

use super::SECOND;

/// A database in a file.
struct Database {
    path: PathBuf,
    opened: AtomicU32,
}

type Db = Object<Database>;

impl Database {
    fn new() -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("ziggurat-{}-{}.sqlite", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        Connection::open(&path).unwrap().execute_batch("CREATE TABLE visits (worker INTEGER)").unwrap();
        Self { path, opened: AtomicU32::new(0) }
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        // The file does not exist if it could not be opened.
        let _ = std::fs::remove_file(&self.path);
    }
}

impl Manager for Database {
    type Type = Connection;
    type Error = rusqlite::Error;

    async fn create(&self) -> rusqlite::Result<Connection> {
        self.opened.fetch_add(1, Ordering::SeqCst);
        let connection = Connection::open(&self.path)?;
        connection.busy_timeout(10 * SECOND)?;
        Ok(connection)
    }

    async fn recycle(&self, connection: &mut Connection, _: &Metrics) -> RecycleResult<rusqlite::Error> {
        if connection.is_autocommit() { Ok(()) } else { Err(RecycleError::message("a transaction was left open")) }
    }
}

fn pool_of(connections: usize) -> Pool<Database> {
    Pool::builder(Database::new()).max_size(connections).build().unwrap()
}

fn db() -> Held<Db> {
    resource::current::<Db>().unwrap().get().unwrap()
}

fn count(db: &Db) -> u32 {
    db.query_row("SELECT count(*) FROM visits", (), |row| row.get(0)).unwrap()
}

/// Returns the number of free connections, and the number of all that were created.
fn free(pool: &Pool<Database>) -> (usize, u32) {
    (pool.status().available, pool.manager().opened.load(Ordering::SeqCst))
}

/// Some pools fail at once for the sixth of ten workers.
///
/// Shows: O1, O2
#[tokio::test]
async fn ten_workers_on_five_connections_wait_in_order_instead_of_failing() {
    let pool = pool_of(5);
    let (order, first_five) = (Arc::new(Mutex::new(Vec::new())), Arc::new(tokio::sync::Barrier::new(5)));
    let seen = Arc::clone(&order);
    let service = ResourceLayer::deadpool(&pool).layer(service_fn(move |worker: u32| {
        seen.lock().unwrap().push(worker);
        let five = Arc::clone(&first_five);
        async move {
            let db = db();
            // No call continues before five of them are inside.
            five.wait().await;
            let work = spawn_blocking(move || {
                db.execute("INSERT INTO visits VALUES (?1)", [worker]).unwrap();
            });
            work.await.unwrap();
            Ok::<_, Error<Infallible>>(worker)
        }
    }));
    let done = join_all((0..10).map(|worker| service.clone().oneshot(worker))).await;
    assert_eq!(done.into_iter().map(Result::unwrap).collect::<Vec<_>>(), (0..10).collect::<Vec<_>>());
    assert_eq!(*order.lock().unwrap(), (0..10).collect::<Vec<_>>());
    assert_eq!(free(&pool), (5, 5));
    assert_eq!(count(&pool.get().await.unwrap()), 10);
}

/// As in a program: set up by its scope, and found there.
fn set_up_pool_of(connections: usize) -> Disposable {
    Disposable::new(
        async move |_: Scope| Ok::<_, Infallible>(pool_of(connections)),
        async |pool: Arc<Pool<Database>>| pool.close(),
    )
}

/// Shows: O3
#[tokio::test]
async fn a_pool_is_closed_with_the_scope_that_set_it_up_and_who_waits_for_it_is_told_so() {
    let app = Scope::root("app").disposable(set_up_pool_of(2)).open().await.unwrap();
    let pool = app.require::<Pool<Database>>().unwrap();
    let service = ServiceBuilder::new()
        .layer(ContextLayer::ambient(app.clone()))
        .layer(ResourceLayer::new(async || {
            let pool = Scope::current().unwrap().require::<Pool<Database>>().unwrap();
            pool.get().await
        }))
        .service(service_fn(|bell: oneshot::Receiver<()>| async {
            let db = db();
            let _ = bell.await;
            Ok::<_, Error<Infallible>>(count(&db))
        }));
    let call = || {
        let (bell, rings) = oneshot::channel();
        (bell, TestTask::new(service.clone().oneshot(rings)))
    };
    let (bells, mut calls): (Vec<_>, Vec<_>) = (0..4).map(|_| call()).unzip();
    assert!(calls.iter_mut().all(|call| call.poll().is_pending()));
    assert_eq!((free(&pool), pool.status().waiting), ((0, 2), 2));

    app.close().await.unwrap();
    let mut waiting = calls.split_off(2);
    for call in &mut waiting {
        assert_eq!(call.times_woken(), 1);
        let Poll::Ready(outcome) = call.poll() else { panic!("it waits for a pool that is closed") };
        closed(&outcome);
    }
    let (_bell, mut late) = call();
    let Poll::Ready(outcome) = late.poll() else { panic!("it waits for a pool that is closed") };
    closed(&outcome);

    // A call that has a connection finishes its work, and then the connection is closed too.
    drop(bells);
    for (left, call) in [1, 0].into_iter().zip(&mut calls) {
        let Poll::Ready(outcome) = call.poll() else { panic!("it was let go") };
        assert_eq!((outcome.unwrap(), pool.status().size), (0, left));
    }
}

fn closed<T>(outcome: &Result<T, Error<Infallible>>) {
    let rejection = ziggurat::rejection(outcome).unwrap();
    assert_eq!(rejection.to_string(), "resource: no resource available: Pool has been closed");
}

/// Shows: O3
#[tokio::test]
async fn a_connection_that_was_left_in_a_transaction_is_replaced_and_not_used_again() {
    let pool = pool_of(1);
    let service = ResourceLayer::deadpool(&pool).layer(service_fn(|hangs: bool| async move {
        let db = db();
        if hangs {
            db.execute_batch("BEGIN; INSERT INTO visits VALUES (1)").unwrap();
            pending::<()>().await;
        }
        Ok::<_, Error<Infallible>>(count(&db))
    }));
    assert_eq!(service.clone().oneshot(false).await.unwrap(), 0);
    let mut dropped = TestTask::new(service.clone().oneshot(true));
    assert!(dropped.poll().is_pending());
    assert_eq!(free(&pool), (0, 1));
    drop(dropped);
    assert_eq!(free(&pool), (1, 1));
    // Rolled back, as another connection shows.
    assert_eq!(service.clone().oneshot(false).await.unwrap(), 0);
    assert_eq!(free(&pool), (1, 2));
    // A working connection is reused.
    assert_eq!(service.oneshot(false).await.unwrap(), 0);
    assert_eq!(free(&pool), (1, 2));
}

/// Shows: O3
#[tokio::test]
async fn a_connection_that_is_discarded_is_replaced() {
    let pool = pool_of(1);
    let service = ResourceLayer::deadpool(&pool).layer(service_fn(|broken: bool| {
        let (lent, db): (Lent<Db>, _) = (resource::current().unwrap(), db());
        if broken {
            db.discard();
            assert!(lent.get().is_err());
        }
        ready(Ok::<_, Error<Infallible>>(()))
    }));
    for (broken, opened) in [(false, 1), (true, 1), (false, 2), (false, 2)] {
        service.clone().oneshot(broken).await.unwrap();
        assert_eq!(free(&pool), (usize::from(!broken), opened));
    }
}

/// Shows: O1
#[tokio::test]
async fn a_query_that_cannot_be_stopped_keeps_its_connection_to_its_end() {
    let pool = pool_of(1);
    let barrier = Arc::new(Barrier::new(2));
    let service = ResourceLayer::deadpool(&pool).layer(service_fn(|worker: u32| {
        let (db, barrier) = (db(), Arc::clone(&barrier));
        async move {
            let query = spawn_blocking(move || {
                if worker == 1 {
                    barrier.wait();
                }
                db.execute("INSERT INTO visits VALUES (?1)", [worker]).unwrap();
                count(&db)
            });
            Ok::<_, Error<Infallible>>(query.await.unwrap())
        }
    }));
    let mut dropped = TestTask::new(service.clone().oneshot(1));
    assert!(dropped.poll().is_pending());
    drop(dropped);
    let mut next = TestTask::new(service.clone().oneshot(2));
    assert!(next.poll().is_pending());
    assert_eq!(free(&pool), (0, 1));
    barrier.wait();
    drop(next);
    // It follows the dropped work, on the same connection.
    assert_eq!(service.oneshot(3).await.unwrap(), 2);
    assert_eq!(free(&pool), (1, 1));
}

/// Shows: O2
#[tokio::test(start_paused = true)]
async fn a_limit_that_the_pool_itself_has_is_kept() {
    let timeouts = Timeouts { wait: Some(SECOND), ..Timeouts::default() };
    let database = Database::new();
    let pool = Pool::<_>::builder(database).max_size(1).timeouts(timeouts).runtime(Runtime::Tokio1).build().unwrap();
    let _taken = pool.get().await.unwrap();
    let outcome =
        ResourceLayer::deadpool(&pool).layer(service_fn(|()| ready(Ok::<_, Error<Infallible>>(())))).oneshot(()).await;
    assert_eq!(ziggurat::rejection(&outcome).unwrap().reason(), &Reason::Exhausted { max_wait: SECOND });
}

/// Shows: O2
#[tokio::test]
async fn a_database_that_cannot_be_opened_is_a_rejection() {
    let database = Database { path: std::env::temp_dir().join("no such directory/db"), opened: AtomicU32::new(0) };
    let pool = Pool::<_>::builder(database).max_size(1).build().unwrap();
    let service = ResourceLayer::deadpool(&pool).layer(service_fn(|()| ready(Ok::<_, Error<Infallible>>(()))));
    for _ in 0..2 {
        let outcome = service.clone().oneshot(()).await;
        let Reason::Unavailable { message } = ziggurat::rejection(&outcome).unwrap().reason() else {
            panic!("{outcome:?}")
        };
        assert!(message.contains("unable to open database file"), "{message}");
    }
    assert_eq!(pool.status().waiting, 0);
}
