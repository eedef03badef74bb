//! What the server's settings mean for what is kept in it, told once, in the log.
//!
//! Nothing is refused: what is bearable is for the operator to say. Settings that cannot be read (a hosted
//! server may keep CONFIG to itself) are told as such.

use redis::aio::MultiplexedConnection;

/// What was found, by name.
#[derive(Debug, Default)]
struct Settings {
    append: String,
    sync: String,
    save: String,
    eviction: String,
    memory: String,
}

/// Looks at the settings and logs what they mean.
pub(super) async fn check(store: &str, connection: &mut MultiplexedConnection) {
    match read(connection).await {
        Ok(settings) => {
            for warning in warnings(&settings) {
                tracing::warn!(store, "{warning}");
            }
            if let Some(note) = note(&settings) {
                tracing::info!(store, "{note}");
            }
        }
        Err(error) => {
            tracing::warn!(
                store,
                "cannot read the settings of Redis ({}): see to it that it has `appendonly yes`, and no eviction",
                error.category()
            );
        }
    }
}

async fn read(connection: &mut MultiplexedConnection) -> redis::RedisResult<Settings> {
    const NAMES: [&str; 5] = ["appendonly", "appendfsync", "save", "maxmemory-policy", "maxmemory"];
    let mut pipe = redis::pipe();
    for name in NAMES {
        pipe.cmd("CONFIG").arg("GET").arg(name);
    }
    let answers: Vec<Vec<String>> = pipe.query_async(connection).await?;
    let mut values = answers.into_iter().map(|pair| pair.into_iter().nth(1).unwrap_or_default());
    let mut next = || values.next().unwrap_or_default();
    Ok(Settings { append: next(), sync: next(), save: next(), eviction: next(), memory: next() })
}

fn warnings(settings: &Settings) -> Vec<&'static str> {
    let mut warnings = Vec::new();
    if settings.append != "yes" {
        warnings.push(if settings.save.is_empty() {
            "Redis keeps nothing on disk: when it ends, all state is lost; set `appendonly yes`, and \
             `appendfsync always` to lose nothing"
        } else {
            "Redis only saves from time to time: a crash loses the state since then; set `appendonly yes`, and \
             `appendfsync always` to lose nothing"
        });
    }
    // Our keys do not expire, so other policies leave them alone.
    if settings.eviction.starts_with("allkeys") && settings.memory != "0" {
        warnings.push(
            "Redis evicts keys when its memory is full, which loses state; set `maxmemory-policy noeviction`",
        );
    }
    warnings
}

fn note(settings: &Settings) -> Option<&'static str> {
    match (&*settings.append, &*settings.sync) {
        ("yes", "everysec") => {
            Some("a crash of Redis can lose the state of the last second (`appendfsync everysec`)")
        }
        ("yes", "no") => Some("a crash of the machine can lose the state of some seconds (`appendfsync no`)"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::{Settings, note, warnings};

    fn settings(append: &str, sync: &str, save: &str, eviction: &str, memory: &str) -> Settings {
        let [append, sync, save] = [append, sync, save].map(str::to_owned);
        Settings { append, sync, save, eviction: eviction.to_owned(), memory: memory.to_owned() }
    }

    #[test]
    fn each_risk_is_told() {
        let told = |settings: &Settings| (warnings(settings).join(" "), note(settings).is_some());
        let best = settings("yes", "always", "", "noeviction", "100");
        assert_eq!(told(&best), (String::new(), false));
        assert_eq!(told(&settings("yes", "everysec", "", "noeviction", "0")), (String::new(), true));
        assert_eq!(told(&settings("yes", "no", "", "allkeys-lru", "0")), (String::new(), true));
        assert!(told(&settings("no", "always", "", "noeviction", "0")).0.contains("nothing on disk"));
        assert!(told(&settings("no", "always", "900 1", "noeviction", "0")).0.contains("from time to time"));
        assert!(told(&settings("yes", "always", "", "allkeys-lru", "1")).0.contains("evicts"));
        assert!(told(&settings("yes", "always", "", "volatile-lru", "1")).0.is_empty());
    }
}
