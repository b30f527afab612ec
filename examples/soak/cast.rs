//! Who takes part, and where.

use crate::common::python::Style;
use crate::ground::Ground;
use crate::host::Host;
use crate::ledger::{Company, Hand};
use crate::neighbours::Seat;
use crate::sample::Rng;
use crate::{readers, writers};

/// One who works until it is over.
pub struct Actor<'a> {
    pub name: String,
    pub act: Box<dyn FnOnce() + Send + 'a>,
}

/// Everybody; what they do is repeatable as far as the machine lets it.
pub struct Cast<'a> {
    ground: &'a Ground,
    seed: u64,
    pub actors: Vec<Actor<'a>>,
}

impl<'a> Cast<'a> {
    pub fn new(ground: &'a Ground, seed: u64) -> Self {
        let mut cast = Self {
            ground,
            seed,
            actors: Vec::new(),
        };
        let [a, b] = &ground.hosts;
        for (number, host) in ground.hosts.iter().enumerate() {
            let name = host.name;
            cast.program(Company::Tools, host, &format!("tool_{name}1"));
            cast.program(Company::Tools, host, &format!("tool_{name}2"));
            cast.program(Company::Modern, host, &format!("among_modern_{name}"));
            cast.program(Company::Old, host, &format!("among_old_{name}"));
            let actor = format!("plain_{name}");
            cast.add(&format!("plain_{name}"), move |rng| {
                readers::plain(ground, host, number, &actor, rng);
            });
        }
        for host in [Some(a), Some(b), None] {
            let actor = format!("reader_{}", host.map_or("beside", |host| host.name));
            cast.add(&actor.clone(), move |rng| {
                readers::read(ground, host, &actor, rng);
            });
        }
        ground.book(Company::Relay).enroll("relay", Hand::Program);
        cast.add("relay", move |rng| writers::relay(ground, "relay", rng));
        cast.add("knocker", move |rng| {
            writers::knocker(ground, "knocker", rng)
        });
        cast.neighbour(Company::Modern, Style::Modern, Some(a), "modern_A");
        cast.neighbour(Company::Modern, Style::Modern, None, "modern_beside");
        cast.neighbour(Company::Old, Style::Old, Some(b), "old_B");
        cast.neighbour(Company::Old, Style::Old, None, "old_beside");
        for (company, host, name) in [
            (Company::Tools, None, "watcher_beside"),
            (Company::Relay, Some(b), "watcher_B"),
        ] {
            let seat = cast.seat(company, Style::Modern, host, name);
            cast.add(name, move |rng| seat.watch(rng));
        }
        cast
    }

    fn add(&mut self, name: &str, act: impl FnOnce(Rng) + Send + 'a) {
        let rng = Rng::new(self.seed.wrapping_add(1 + self.actors.len() as u64));
        self.actors.push(Actor {
            name: name.to_owned(),
            act: Box::new(move || act(rng)),
        });
    }

    fn program(&mut self, company: Company, host: &'a Host, name: &str) {
        let (ground, book) = (self.ground, self.ground.book(company));
        book.enroll(name, Hand::Program);
        let writer = name.to_owned();
        self.add(name, move |rng| {
            writers::program(ground, host, book, &writer, rng);
        });
    }

    fn neighbour(&mut self, company: Company, style: Style, host: Option<&'a Host>, name: &str) {
        let seat = self.seat(company, style, host, name);
        let hand = match style {
            Style::Modern => Hand::Modern,
            Style::Old => Hand::Old,
        };
        seat.book.enroll(name, hand);
        self.add(name, move |rng| seat.write(rng));
    }

    fn seat(&self, company: Company, style: Style, host: Option<&'a Host>, name: &str) -> Seat<'a> {
        Seat {
            ground: self.ground,
            book: self.ground.book(company),
            style,
            host,
            writer: name.to_owned(),
        }
    }
}
