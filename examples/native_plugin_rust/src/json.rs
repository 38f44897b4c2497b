//! As much of JSON as a plugin needs: reading what the host writes, and quoting text.

#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    Null,
    Bool(bool),
    Number(f64),
    Text(String),
    List(Vec<Value>),
    Object(Vec<(String, Value)>),
}

impl Value {
    pub fn member(&self, name: &str) -> &Value {
        match self {
            Value::Object(members) => members
                .iter()
                .find(|(key, _)| key == name)
                .map_or(&Value::Null, |(_, value)| value),
            _ => &Value::Null,
        }
    }

    pub fn text(&self) -> Option<&str> {
        match self {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    pub fn number(&self) -> Option<f64> {
        match self {
            Value::Number(number) => Some(*number),
            _ => None,
        }
    }

    pub fn list(&self) -> &[Value] {
        match self {
            Value::List(values) => values,
            _ => &[],
        }
    }
}

/// The text as JSON writes it.
pub fn quote(text: &str) -> String {
    let mut out = String::from("\"");
    for character in text.chars() {
        match character {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            c if (c as u32) < 0x20 => out.push_str(&format!("\\u{:04x}", c as u32)),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

pub fn parse(text: &str) -> Result<Value, String> {
    let mut reader = Reader { text, at: 0 };
    let value = reader.value()?;
    reader.blank();
    if reader.at == text.len() {
        Ok(value)
    } else {
        Err(reader.wrong("the end"))
    }
}

struct Reader<'a> {
    text: &'a str,
    at: usize,
}

impl Reader<'_> {
    fn wrong(&self, wanted: &str) -> String {
        format!("the request is not valid JSON: {} expected at byte {}", wanted, self.at)
    }

    fn blank(&mut self) {
        let rest = &self.text[self.at..];
        self.at += rest.len() - rest.trim_start().len();
    }

    fn take(&mut self, word: &str) -> bool {
        self.blank();
        let found = self.text[self.at..].starts_with(word);
        if found {
            self.at += word.len();
        }
        found
    }

    fn value(&mut self) -> Result<Value, String> {
        if self.take("null") {
            return Ok(Value::Null);
        }
        if self.take("true") {
            return Ok(Value::Bool(true));
        }
        if self.take("false") {
            return Ok(Value::Bool(false));
        }
        if self.take("[") {
            let mut values = Vec::new();
            while !self.take("]") {
                if !values.is_empty() && !self.take(",") {
                    return Err(self.wrong("a comma"));
                }
                values.push(self.value()?);
            }
            return Ok(Value::List(values));
        }
        if self.take("{") {
            let mut members = Vec::new();
            while !self.take("}") {
                if !members.is_empty() && !self.take(",") {
                    return Err(self.wrong("a comma"));
                }
                let key = self.string()?;
                if !self.take(":") {
                    return Err(self.wrong("a colon"));
                }
                members.push((key, self.value()?));
            }
            return Ok(Value::Object(members));
        }
        if self.text[self.at..].starts_with('"') {
            return Ok(Value::Text(self.string()?));
        }
        let rest = &self.text[self.at..];
        let end = rest
            .find(|c: char| !c.is_ascii_digit() && !"+-.eE".contains(c))
            .unwrap_or(rest.len());
        let number = rest[..end].parse().map_err(|_| self.wrong("a value"))?;
        self.at += end;
        Ok(Value::Number(number))
    }

    fn string(&mut self) -> Result<String, String> {
        if !self.take("\"") {
            return Err(self.wrong("a text"));
        }
        let mut units: Vec<u16> = Vec::new();
        loop {
            let mut rest = self.text[self.at..].chars();
            let character = rest.next().ok_or_else(|| self.wrong("the end of a text"))?;
            self.at += character.len_utf8();
            if character == '"' {
                return String::from_utf16(&units).map_err(|_| self.wrong("a character"));
            }
            if character != '\\' {
                units.extend(character.encode_utf16(&mut [0; 2]).iter());
                continue;
            }
            let escaped = rest.next().ok_or_else(|| self.wrong("a character"))?;
            self.at += escaped.len_utf8();
            units.push(match escaped {
                'n' => 10,
                't' => 9,
                'r' => 13,
                'b' => 8,
                'f' => 12,
                'u' => {
                    let digits = self.text.get(self.at..self.at + 4).ok_or_else(|| self.wrong("four digits"))?;
                    self.at += 4;
                    u16::from_str_radix(digits, 16).map_err(|_| self.wrong("four digits"))?
                }
                other if other.is_ascii() => other as u16,
                _ => return Err(self.wrong("an escape")),
            });
        }
    }
}
