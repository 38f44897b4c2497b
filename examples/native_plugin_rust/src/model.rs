//! The model: lines, their words, and which line a question means.

use std::collections::{BTreeSet, HashMap, HashSet};

pub struct Model {
    words: Vec<String>,
    numbers: HashMap<String, u32>,
    lines: Vec<Vec<u32>>,
}

impl Model {
    /// The lines of a text that have words in them, each word in lower case and each line once.
    pub fn normal(text: &str) -> Vec<String> {
        let mut seen = HashSet::new();
        text.lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ").to_lowercase())
            .filter(|line| !line.is_empty() && seen.insert(line.clone()))
            .collect()
    }

    pub fn new(text: &str) -> Model {
        let lines = Model::normal(text);
        let sorted: BTreeSet<&str> = lines.iter().flat_map(|line| line.split(' ')).collect();
        let words: Vec<String> = sorted.into_iter().map(str::to_string).collect();
        let numbers: HashMap<String, u32> =
            words.iter().enumerate().map(|(number, word)| (word.clone(), number as u32)).collect();
        let lines = lines.iter().map(|line| line.split(' ').map(|word| numbers[word]).collect()).collect();
        Model { words, numbers, lines }
    }

    /// The token that ends a text.
    pub fn end(&self) -> u32 {
        self.words.len() as u32
    }

    /// The token of a word that no line has.
    fn unknown(&self) -> u32 {
        self.end() + 1
    }

    pub fn vocabulary(&self) -> u32 {
        self.end() + 2
    }

    pub fn encode(&self, text: &str) -> Vec<u32> {
        text.split_whitespace()
            .map(|word| self.numbers.get(&word.to_lowercase()).copied().unwrap_or_else(|| self.unknown()))
            .collect()
    }

    pub fn decode(&self, tokens: &[u32]) -> String {
        let known = tokens.iter().filter_map(|token| self.words.get(*token as usize));
        known.map(String::as_str).collect::<Vec<_>>().join(" ")
    }

    /// The line that shares the most words with the question, the first of several; the end of text comes last.
    pub fn answer(&self, question: &[u32]) -> Vec<u32> {
        let asked: HashSet<&u32> = question.iter().collect();
        let mut best: (usize, &[u32]) = (0, &[]);
        for line in &self.lines {
            let shared = line.iter().collect::<HashSet<_>>().intersection(&asked).count();
            if shared > best.0 {
                best = (shared, line);
            }
        }
        best.1.iter().copied().chain([self.end()]).collect()
    }
}
