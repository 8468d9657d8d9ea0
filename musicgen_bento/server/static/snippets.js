// A request as a curl command and as a Python program.

const endpoint = () => new URL("generate", document.baseURI).href;

export function curlSnippet(request) {
  const body = JSON.stringify(request).replaceAll("'", "'\\''");
  return `curl -X POST ${endpoint()} \\
  -H "Content-Type: application/json" \\
  -d '${body}' \\
  --fail-with-body --output music.wav
`;
}

// Strings and numbers have the same notation in JSON and in Python.
export function pythonSnippet(request) {
  const lines = Object.entries(request).map(([name, value]) => `    ${JSON.stringify(name)}: ${JSON.stringify(value)},`);
  return `import requests

url = ${JSON.stringify(endpoint())}
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

/**
 * Copies text to the clipboard. Without access to it (a page without TLS from another machine), shows the text,
 * selected, in a dialog.
 */
export async function copyText(button, text, announce) {
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
  announce("Copied.");
  setTimeout(() => {
    button.textContent = label;
    button.disabled = false;
  }, 1500);
}
