// The same request for a terminal and for a program.

const address = () => new URL("generate", document.baseURI).href;

export function curl(request) {
  const body = JSON.stringify(request).replaceAll("'", "'\\''");
  return `curl -X POST ${address()} \\
  -H "Content-Type: application/json" \\
  -d '${body}' \\
  --fail-with-body --output music.wav
`;
}

// Text and numbers are written in JSON as they are in Python.
export function python(request) {
  const lines = Object.entries(request).map(([name, value]) => `    ${JSON.stringify(name)}: ${JSON.stringify(value)},`);
  return `import requests

url = ${JSON.stringify(address())}
payload = {
${lines.join("\n")}
}
response = requests.post(url, json=payload)
if not response.ok:
    raise SystemExit(response.text)
with open("music.wav", "wb") as f:
    f.write(response.content)
print(response.headers["X-Model"], response.headers["X-Seed"])
`;
}

// Where the clipboard is not to be had (a page without TLS from another machine), the code is shown, ready to be copied.
export async function copy(button, text, said) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const code = document.getElementById("code");
    code.value = text;
    document.getElementById("snippet").showModal();
    code.select();
    code.scrollTop = 0;
    return;
  }
  const label = button.textContent;
  button.textContent = "Copied";
  button.disabled = true;
  said("Copied.");
  setTimeout(() => {
    button.textContent = label;
    button.disabled = false;
  }, 1500);
}
